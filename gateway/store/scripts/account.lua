-- account.lua: one tenant's account, for everything that waited to be done to it, in one atomic step:
-- renew leases, let go of those given back, book what ended, forget expired leases, then decide the asks in order.
-- An ask is checked in all dimensions and takes from all of them, or is refused and takes nothing.
-- State is read once and written once; the asks are decided in arithmetic.
--
-- KEYS  1 {t}:limits  hash: at (time of the last call), period (of the last ask), requests and tokens: the buckets, each
--                     "<level> <at> <full_at>"; input and output: two more; held: tokens reserved by the leases
--       2 {t}:leases  zset: member -> expiry_ms;  member = "<request>|<unique>|<reserved nanousd>|<period>", and
--                     "|<reserved tokens>|<window>,<window>.." after it where the account has windows or counts tokens
--       3 {t}:events  stream          4 {t}:producer:<name>  string: the last record of that producer booked here
--       5.. the usage hashes of the booking
--       Beside them the budget hashes {t}:budget:<period> (spent, reserved), and for further windows {t}:window:<period>
--       (spent, reserved, tokens, tokens_reserved). A lease names its own period and windows: what it gives back, or is
--       billed, goes there, whatever the time is by then.
-- ARGV  1 MessagePack array:
--         1 now_ms (the caller's clock, Unix; the account's own time never runs backwards)
--         2 lease_ttl_ms
--         3 requests_per_minute   4 tokens_per_minute   5 concurrent_requests   6 budget_nanousd   (-1: unlimited)
--         7 period, the current budget period, such as "month:2026-10"
--         8 budget_prefix, the budget keys' name before the period    9 budget_ttl_s, kept after the last new field
--        10 away_ms: for so long until now the caller could not reach us; leases that ran out meanwhile get a new term
--        11 renewals {member, ..}
--        12 releases {member, tokens, reserved_ms, input, output, ..}: granted to somebody who had gone
--        13 asks {member, tokens, nanousd, input, output, most_tokens, key, ..}: tokens, input and output are what the
--           buckets give; most_tokens is what a window and concurrent_tokens hold
--        14 booking, or false:
--           { first, skips, producer, producer_ttl_s, events_after_ms,
--             settlements {number, member, period, windows, reserved_tokens, reserved_ms, used_tokens, cost_nanousd,
--                          requests_back (1: it never ran, so its place in requests/min is given back),
--                          reserved_input, used_input, reserved_output, used_output, ..},
--             usage { {ttl_s (0: kept), field, increment (decimal string), ..}, .. } one per usage key, in order }
--           A booking is applied if `first` is the number after the producer's last, or skips = 1 and it is higher: so a
--           resend changes nothing. Events booked before events_after_ms leave the stream.
--        15 window_prefix, the windows' name before the period   16 window_ttl_s
--        17 more, or false where there are no further limits: { input_tokens_per_minute, output_tokens_per_minute,
--           concurrent_tokens, checks {dimension, window, limit (tokens or nanousd), ends_ms,
--           key (only asks of that key are checked, '': all), ..} }
--       2.. the booking's events, JSON, numbered from first
-- returns MessagePack array { now_ms, last, verdicts }
--   last      the producer's last record booked here, this call's included
--   verdicts  one array per ask: { dimension, requests_remaining, requests_reset_ms, tokens_remaining,
--             tokens_reset_ms, asked, available, retry_after_ms, spent_nanousd, reserved_nanousd, key };  only the first
--             five when granted
--   dimension 0 granted, else refused by 1 requests_per_minute, 2 tokens_per_minute, 3 concurrent_requests,
--             4 budget_usd, 5 input_tokens_per_minute, 6 output_tokens_per_minute, 7 concurrent_tokens,
--             8 tokens_per_day, 9 usd_per_hour, 10 usd_per_day, 11 usd_per_month: the one that takes longest.
--             retry_after_ms -1: waiting does not help. spent and reserved are of the window that refused.
--   reset_ms  until the bucket is full; of an unlimited bucket everything is -1.
--
-- Buckets are counted in 1/60000 of a request or token, so that a limit per minute refills whole units per ms.
-- All numbers stay below 2^53, where a double is exact; sums that could grow beyond are left to HINCRBY.

local UNIT = 60000
local RETRY_SOON_MS = 1000 -- when a running request will end is not known here
local TOKENS_PER_DAY = 8

local call = cmsgpack.unpack(ARGV[1])
local lease_ttl_ms = call[2]
local requests_limit, tokens_limit, leases_limit, budget = call[3], call[4], call[5], call[6]
local period, budget_prefix, budget_ttl_s = call[7], call[8], call[9]
local window_prefix, window_ttl_s, more = call[15], call[16], call[17]

local function int(n) return string.format('%.0f', n) end
local function div(a, b) return (a - math.fmod(a, b)) / b end -- whole division, exact where a / b rounds; a, b >= 0
local function div_up(a, b) return div(a + b - 1, b) end

local state = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens', 'input', 'output', 'held')
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
local input = more and bucket(more[1], state[4])
local output = more and bucket(more[2], state[5])

-- Money is collected per period and written once, by increments.
local spent_by, reserved_by = {}, {}
local function add(sums, key, n) sums[key] = (sums[key] or 0) + n end

-- So are the windows, and the tokens that leases hold.
local window_spent, window_reserved, window_tokens, window_tokens_reserved = {}, {}, {}, {}
local held_before, held = tonumber(state[6]) or 0, tonumber(state[6]) or 0

-- What a lease reserves is taken (sign 1) or given back (-1), where the lease says that it belongs.
local function hold(member, sign)
  local nanousd, lease_period, rest = string.match(member, '^[^|]*|[^|]*|(%d+)|([^|]*)(.*)$')
  nanousd = tonumber(nanousd)
  if nanousd > 0 then add(reserved_by, lease_period, sign * nanousd) end
  if rest ~= '' then
    local most_tokens, windows = string.match(rest, '^|(%d+)|(.*)$')
    most_tokens = tonumber(most_tokens)
    held = held + sign * most_tokens
    for window in string.gmatch(windows, '[^,]+') do
      add(window_reserved, window, sign * nanousd)
      add(window_tokens_reserved, window, sign * most_tokens)
    end
  end
end

-- 1. Renew. A lease that was forgotten while its worker could not reach us runs on: it is held, and reserved, again.
local away_ms, renewals = call[10], call[11]
if #renewals > 0 then
  local scores = redis.call('ZMSCORE', KEYS[2], unpack(renewals))
  local entries = {}
  for i, member in ipairs(renewals) do
    if not scores[i] then hold(member, 1) end
    entries[2 * i - 1], entries[2 * i] = int(now + lease_ttl_ms), member
  end
  redis.call('ZADD', KEYS[2], unpack(entries))
end

-- 2. Let go of what was granted to somebody who had gone. Once: its lease says whether it is still held.
local releases = call[12]
for i = 1, #releases, 5 do
  local member, reserved_tokens, reserved_ms = releases[i], releases[i + 1], releases[i + 2]
  if redis.call('ZREM', KEYS[2], member) == 1 then
    hold(member, -1)
    if tokens then give_back(tokens, reserved_tokens, reserved_ms) end
    if input then give_back(input, releases[i + 3], reserved_ms) end
    if output then give_back(output, releases[i + 4], reserved_ms) end
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
  for i = 1, #settlements, 13 do
    if is_next or settlements[i] <= last then
      members[#members + 1], of[#of + 1] = settlements[i + 1], i
    end
  end
  if #members > 0 then
    local scores = redis.call('ZMSCORE', KEYS[2], unpack(members))
    redis.call('ZREM', KEYS[2], unpack(members))
    for i, s in ipairs(of) do
      local lease_period, windows, reserved_tokens, reserved_ms, used_tokens, cost, requests_back =
        settlements[s + 2], settlements[s + 3], settlements[s + 4], settlements[s + 5], settlements[s + 6],
        settlements[s + 7], settlements[s + 8]
      if scores[i] then hold(members[i], -1) end
      if is_next then
        add(spent_by, lease_period, cost)
        for window in string.gmatch(windows, '[^,]+') do
          add(window_spent, window, cost)
          add(window_tokens, window, used_tokens)
        end
        if tokens then give_back(tokens, reserved_tokens - used_tokens, reserved_ms) end
        if input then give_back(input, settlements[s + 9] - settlements[s + 10], reserved_ms) end
        if output then give_back(output, settlements[s + 11] - settlements[s + 12], reserved_ms) end
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
  for _, member in ipairs(expired) do hold(member, -1) end
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
  -- Each check: its dimension, limit and end, and what its window has used and reserved of it.
  local checks = {}
  for i = 1, more and #more[4] or 0, 5 do
    local d, window, limit, ends_ms = more[4][i], more[4][i + 1], more[4][i + 2], more[4][i + 3]
    local counts_tokens = d == TOKENS_PER_DAY
    local stored = redis.call('HMGET', window_prefix .. window, counts_tokens and 'tokens' or 'spent',
      counts_tokens and 'tokens_reserved' or 'reserved')
    checks[#checks + 1] = {
      dimension = d, limit = limit, ends_ms = ends_ms, key = more[4][i + 4], counts_tokens = counts_tokens,
      used = (tonumber(stored[1]) or 0) + ((counts_tokens and window_tokens or window_spent)[window] or 0),
      reserved = (tonumber(stored[2]) or 0) +
        ((counts_tokens and window_tokens_reserved or window_reserved)[window] or 0),
    }
  end
  local held_limit = more and more[3] or -1
  local entries = {}
  for i = 1, #asks, 7 do
    local member, ask_tokens, ask_nanousd = asks[i], asks[i + 1], asks[i + 2]
    local ask_input, ask_output, most_tokens, ask_key = asks[i + 3], asks[i + 4], asks[i + 5], asks[i + 6]
    local dimension, longest, asked, available, used, kept, key = 0, 0, 0, 0, 0, 0, ''
    local function refuse(d, wait, what, left, is_used, is_kept, of_key)
      if wait > longest then
        dimension, longest, asked, available, used, kept = d, wait, what, left, is_used or 0, is_kept or 0
        key = of_key or ''
      end
    end
    if budget >= 0 and spent + reserved + ask_nanousd > budget then
      refuse(4, spent + ask_nanousd > budget and math.huge or RETRY_SOON_MS, ask_nanousd,
        math.max(0, budget - spent - reserved), spent, reserved)
    end
    for _, check in ipairs(checks) do
      local what = check.counts_tokens and most_tokens or ask_nanousd
      if (check.key == '' or check.key == ask_key) and check.used + check.reserved + what > check.limit then
        local wait = RETRY_SOON_MS
        if what > check.limit then
          wait = math.huge
        elseif check.used + what > check.limit then
          wait = math.max(1, check.ends_ms - now)
        end
        refuse(check.dimension, wait, what, math.max(0, check.limit - check.used - check.reserved), check.used,
          check.reserved, check.key)
      end
    end
    if held_limit >= 0 and held + most_tokens > held_limit then
      refuse(7, most_tokens > held_limit and math.huge or RETRY_SOON_MS, most_tokens, math.max(0, held_limit - held))
    end
    if input then refuse(5, wait_ms(input, ask_input), ask_input, remaining(input)) end
    if output then refuse(6, wait_ms(output, ask_output), ask_output, remaining(output)) end
    if tokens then refuse(2, wait_ms(tokens, ask_tokens), ask_tokens, remaining(tokens)) end
    if requests then refuse(1, wait_ms(requests, 1), 1, remaining(requests)) end
    if leases_limit >= 0 and leases >= leases_limit then refuse(3, RETRY_SOON_MS, 1, 0) end

    if dimension == 0 then
      if requests then requests.level = requests.level - UNIT end
      if tokens then tokens.level = tokens.level - ask_tokens * UNIT end
      if input then input.level = input.level - ask_input * UNIT end
      if output then output.level = output.level - ask_output * UNIT end
      for _, check in ipairs(checks) do
        if check.key == '' or check.key == ask_key then
          check.reserved = check.reserved + (check.counts_tokens and most_tokens or ask_nanousd)
        end
      end
      reserved = reserved + ask_nanousd
      hold(member, 1)
      leases = leases + 1
      entries[#entries + 1] = int(now + lease_ttl_ms)
      entries[#entries + 1] = member
      verdicts[#verdicts + 1] =
        { 0, remaining(requests), reset_ms(requests), remaining(tokens), reset_ms(tokens) }
    else
      verdicts[#verdicts + 1] = { dimension, remaining(requests), reset_ms(requests), remaining(tokens),
        reset_ms(tokens), asked, available, longest == math.huge and -1 or longest, used, kept, key }
    end
  end
  if #entries > 0 then redis.call('ZADD', KEYS[2], unpack(entries)) end
end

-- 6. Write down what changed.
local function increment(prefix, ttl_s, field, sums)
  for sum_period, n in pairs(sums) do
    if n ~= 0 then
      local key = prefix .. sum_period
      if redis.call('HINCRBY', key, field, int(n)) == n then redis.call('EXPIRE', key, int(ttl_s)) end
    end
  end
end
increment(budget_prefix, budget_ttl_s, 'spent', spent_by)
increment(budget_prefix, budget_ttl_s, 'reserved', reserved_by)
increment(window_prefix, window_ttl_s, 'spent', window_spent)
increment(window_prefix, window_ttl_s, 'reserved', window_reserved)
increment(window_prefix, window_ttl_s, 'tokens', window_tokens)
increment(window_prefix, window_ttl_s, 'tokens_reserved', window_tokens_reserved)
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
keep('input', input)
keep('output', output)
if held ~= held_before then
  fields[#fields + 1], fields[#fields + 2] = 'held', int(held)
end
redis.call('HSET', KEYS[1], unpack(fields))

return cmsgpack.pack({ now, last, verdicts })
