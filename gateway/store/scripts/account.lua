-- account.lua: one tenant's account, for everything that waited to be done to it, in one atomic step:
-- renew leases, let go of those given back, book what ended, forget expired leases, then decide the asks in order.
-- An ask is checked in all dimensions and takes from all of them, or is refused and takes nothing.
-- State is read once and written once; the asks are decided in arithmetic.
--
-- KEYS  1 {t}:limits  hash: at (time of the last call), period (of the last ask), requests and tokens: the buckets, each
--                     "<level> <at> <full_at>"
--       2 {t}:leases  zset: member -> expiry_ms;  member = "<request>|<unique>|<reserved nanousd>|<period>"
--       3 {t}:events  stream          4 {t}:producer:<name>  string: the last record of that producer booked here
--       5.. the usage hashes of the booking
--       Beside them the budget hashes {t}:budget:<period> (spent, reserved): an expired lease names its own period.
-- ARGV  1 MessagePack array:
--         1 now_ms (the caller's clock, Unix; the account's own time never runs backwards)
--         2 lease_ttl_ms
--         3 requests_per_minute   4 tokens_per_minute   5 concurrent_requests   6 budget_nanousd   (-1: unlimited)
--         7 period, the current budget period, such as "month:2026-10"
--         8 budget_prefix, the budget keys' name before the period    9 budget_ttl_s, kept after the last new field
--        10 away_ms: for so long until now the caller could not reach us; leases that ran out meanwhile get a new term
--        11 renewals {member, ..}
--        12 releases {member, tokens, reserved_ms, ..}: granted to somebody who had gone
--        13 asks {member, tokens, nanousd, ..}
--        14 booking, or false:
--           { first, skips, producer, producer_ttl_s, events_after_ms,
--             settlements {number, member, period, reserved_nanousd, reserved_tokens, reserved_ms, used_tokens,
--                          cost_nanousd, requests_back (1: it never ran, so its place in requests/min is given back), ..},
--             usage { {ttl_s (0: kept), field, increment (decimal string), ..}, .. } one per usage key, in order }
--           A booking is applied if `first` is the number after the producer's last, or skips = 1 and it is higher: so a
--           resend changes nothing. Events booked before events_after_ms leave the stream.
--       2.. the booking's events, JSON, numbered from first
-- returns MessagePack array { now_ms, last, verdicts }
--   last      the producer's last record booked here, this call's included
--   verdicts  one array per ask: { dimension, requests_remaining, requests_reset_ms, tokens_remaining,
--             tokens_reset_ms, asked, available, retry_after_ms, spent_nanousd, reserved_nanousd };  only the first
--             five when granted
--   dimension 0 granted, else refused by 1 requests_per_minute, 2 tokens_per_minute, 3 concurrent_requests,
--             4 budget_usd: the one that takes longest. retry_after_ms -1: waiting does not help.
--   reset_ms  until the bucket is full; of an unlimited bucket everything is -1.
--
-- Buckets are counted in 1/60000 of a request or token, so that a limit per minute refills whole units per ms.
-- All numbers stay below 2^53, where a double is exact; sums that could grow beyond are left to HINCRBY.

local UNIT = 60000
local RETRY_SOON_MS = 1000 -- when a running request will end is not known here

local call = cmsgpack.unpack(ARGV[1])
local lease_ttl_ms = call[2]
local requests_limit, tokens_limit, leases_limit, budget = call[3], call[4], call[5], call[6]
local period, budget_prefix, budget_ttl_s = call[7], call[8], call[9]

local function int(n) return string.format('%.0f', n) end
local function div(a, b) return (a - math.fmod(a, b)) / b end -- whole division, exact where a / b rounds; a, b >= 0
local function div_up(a, b) return div(a + b - 1, b) end

local state = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens')
local now = math.max(call[1], tonumber(state[1]) or 0)

-- A bucket remembers when it was last full: a refund of something taken before that would be tokens from nowhere,
-- since the refill has already made up for it.
local function cap(b)
  if b.level >= b.capacity then
    b.level = b.capacity
    b.full_at = now
  end
end
local function bucket(limit, stored)
  if limit < 0 then return nil end
  local b = { limit = limit, capacity = limit * UNIT, level = limit * UNIT }
  if stored then
    local level, at, full_at = string.match(stored, '(%S+) (%S+) (%S+)')
    b.level = tonumber(level) + (now - tonumber(at)) * limit
    b.full_at = tonumber(full_at)
  end
  cap(b)
  return b
end
local function give_back(b, amount, taken_at)
  if amount < 0 or b.full_at <= taken_at then
    b.level = b.level + amount * UNIT
    cap(b)
  end
end
local function remaining(b) return b and math.max(0, math.floor(b.level / UNIT)) or -1 end
local function reset_ms(b) return b and (b.limit > 0 and div_up(b.capacity - b.level, b.limit) or 0) or -1 end
local function wait_ms(b, amount)
  if b.level >= amount * UNIT then return 0 end
  if amount > b.limit or b.limit == 0 then return math.huge end
  return div_up(amount * UNIT - b.level, b.limit)
end

local requests = bucket(requests_limit, state[2])
local tokens = bucket(tokens_limit, state[3])

-- Money is collected per period and written once, by increments.
local spent_by, reserved_by = {}, {}
local function add(sums, key, n) sums[key] = (sums[key] or 0) + n end

local function lease_money(member)
  local nanousd, lease_period = string.match(member, '|(%d+)|([^|]*)$')
  return tonumber(nanousd), lease_period
end

-- 1. Renew. A lease that was forgotten while its worker could not reach us runs on: it is held, and reserved, again.
local away_ms, renewals = call[10], call[11]
if #renewals > 0 then
  local held = redis.call('ZMSCORE', KEYS[2], unpack(renewals))
  local entries = {}
  for i, member in ipairs(renewals) do
    if not held[i] then
      local nanousd, lease_period = lease_money(member)
      add(reserved_by, lease_period, nanousd)
    end
    entries[2 * i - 1], entries[2 * i] = int(now + lease_ttl_ms), member
  end
  redis.call('ZADD', KEYS[2], unpack(entries))
end

-- 2. Let go of what was granted to somebody who had gone. Once: its lease says whether it is still held.
local releases = call[12]
for i = 1, #releases, 3 do
  local member, reserved_tokens, reserved_ms = releases[i], releases[i + 1], releases[i + 2]
  if redis.call('ZREM', KEYS[2], member) == 1 then
    local nanousd, lease_period = lease_money(member)
    add(reserved_by, lease_period, -nanousd)
    if tokens then give_back(tokens, reserved_tokens, reserved_ms) end
    if requests then give_back(requests, 1, reserved_ms) end
  end
end

-- 3. Book what ended. A resend still lets go of its leases: they may have been renewed since.
local last = tonumber(redis.call('GET', KEYS[4]) or 0)
local booking = call[14]
if booking then
  local first, skips, settlements = booking[1], booking[2], booking[6]
  local is_next = first == last + 1 or (skips == 1 and first > last)
  local members, of = {}, {}
  for i = 1, #settlements, 9 do
    if is_next or settlements[i] <= last then
      members[#members + 1], of[#of + 1] = settlements[i + 1], i
    end
  end
  if #members > 0 then
    local held = redis.call('ZMSCORE', KEYS[2], unpack(members))
    redis.call('ZREM', KEYS[2], unpack(members))
    for i, s in ipairs(of) do
      local lease_period, reserved_nanousd, reserved_tokens, reserved_ms, used_tokens, cost, requests_back =
        settlements[s + 2], settlements[s + 3], settlements[s + 4], settlements[s + 5], settlements[s + 6],
        settlements[s + 7], settlements[s + 8]
      if held[i] then add(reserved_by, lease_period, -reserved_nanousd) end
      if is_next then
        add(spent_by, lease_period, cost)
        if tokens then give_back(tokens, reserved_tokens - used_tokens, reserved_ms) end
        if requests and requests_back == 1 then give_back(requests, 1, reserved_ms) end
      end
    end
  end
  if is_next then
    last = first - 1
    local from = booking[3] .. ':'
    for i = 2, #ARGV do
      last = last + 1
      redis.call('XADD', KEYS[3], 'MINID', '~', int(booking[5]), '*', 'event', ARGV[i], 'from', from .. int(last))
    end
    for i, sums in ipairs(booking[7]) do
      local is_new = false
      for j = 2, #sums, 2 do
        -- A hash that was not there gives back the increment itself.
        if redis.call('HINCRBY', KEYS[4 + i], sums[j], sums[j + 1]) == tonumber(sums[j + 1]) then is_new = true end
      end
      if is_new and sums[1] > 0 then redis.call('EXPIRE', KEYS[4 + i], int(sums[1])) end
    end
    redis.call('SET', KEYS[4], int(last), 'EX', int(booking[4]))
  end
end

-- 4. Forget the leases of workers that died: what they reserved is free again. Those that ran out while we were away
-- may belong to workers that live, and get a term in which they can be renewed.
local expired = redis.call('ZRANGE', KEYS[2], '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 1000)
if #expired > 0 and away_ms > 0 then
  local entries = {}
  for i, member in ipairs(expired) do
    entries[2 * i - 1], entries[2 * i] = int(now + lease_ttl_ms), member
  end
  redis.call('ZADD', KEYS[2], unpack(entries))
elseif #expired > 0 then
  redis.call('ZREM', KEYS[2], unpack(expired))
  for _, member in ipairs(expired) do
    local nanousd, lease_period = lease_money(member)
    add(reserved_by, lease_period, -nanousd)
  end
end

-- 5. Decide the asks.
local verdicts = {}
local asks = call[13]
if #asks > 0 then
  local spent, reserved = 0, 0
  if budget >= 0 then
    local money = redis.call('HMGET', budget_prefix .. period, 'spent', 'reserved')
    spent = (tonumber(money[1]) or 0) + (spent_by[period] or 0)
    reserved = (tonumber(money[2]) or 0) + (reserved_by[period] or 0)
  end
  local leases = leases_limit >= 0 and redis.call('ZCARD', KEYS[2]) or 0
  local entries = {}
  for i = 1, #asks, 3 do
    local member, ask_tokens, ask_nanousd = asks[i], asks[i + 1], asks[i + 2]
    local dimension, longest, asked, available = 0, 0, 0, 0
    local function refuse(d, wait, what, left)
      if wait > longest then dimension, longest, asked, available = d, wait, what, left end
    end
    if budget >= 0 and spent + reserved + ask_nanousd > budget then
      refuse(4, spent + ask_nanousd > budget and math.huge or RETRY_SOON_MS, ask_nanousd,
        math.max(0, budget - spent - reserved))
    end
    if tokens then refuse(2, wait_ms(tokens, ask_tokens), ask_tokens, remaining(tokens)) end
    if requests then refuse(1, wait_ms(requests, 1), 1, remaining(requests)) end
    if leases_limit >= 0 and leases >= leases_limit then refuse(3, RETRY_SOON_MS, 1, 0) end

    if dimension == 0 then
      if requests then requests.level = requests.level - UNIT end
      if tokens then tokens.level = tokens.level - ask_tokens * UNIT end
      reserved = reserved + ask_nanousd
      if ask_nanousd > 0 then add(reserved_by, period, ask_nanousd) end
      leases = leases + 1
      entries[#entries + 1] = int(now + lease_ttl_ms)
      entries[#entries + 1] = member
      verdicts[#verdicts + 1] =
        { 0, remaining(requests), reset_ms(requests), remaining(tokens), reset_ms(tokens) }
    else
      verdicts[#verdicts + 1] = { dimension, remaining(requests), reset_ms(requests), remaining(tokens),
        reset_ms(tokens), asked, available, longest == math.huge and -1 or longest, spent, reserved }
    end
  end
  if #entries > 0 then redis.call('ZADD', KEYS[2], unpack(entries)) end
end

-- 6. Write down what changed.
local function increment(field, sums)
  for sum_period, n in pairs(sums) do
    if n ~= 0 then
      local key = budget_prefix .. sum_period
      if redis.call('HINCRBY', key, field, int(n)) == n then redis.call('EXPIRE', key, int(budget_ttl_s)) end
    end
  end
end
increment('spent', spent_by)
increment('reserved', reserved_by)
local fields = { 'at', int(now) }
if #asks > 0 then
  fields[3], fields[4] = 'period', period
end
local function keep(name, b)
  if b then
    fields[#fields + 1] = name
    fields[#fields + 1] = int(b.level) .. ' ' .. int(now) .. ' ' .. int(b.full_at)
  end
end
keep('requests', requests)
keep('tokens', tokens)
redis.call('HSET', KEYS[1], unpack(fields))

return cmsgpack.pack({ now, last, verdicts })
