-- account.lua: one tenant's account, for everything that waited to be done to it, in one atomic step:
-- renew leases, let go of those given back, book what ended, forget expired leases, then decide the asks in order.
-- An ask is checked in all dimensions of all its scopes and takes from all of them, or is refused and takes nothing.
-- State is read once and written once; the asks are decided in arithmetic.
--
-- A scope is what a limit is of: the tenant itself, one of its keys, or what it shares with others: its group, a model,
-- the fleet. Names of shared scopes and of their windows begin with "@", and live under shared_prefix, beyond the
-- tenant's hash tag. A scope's mode says what its limits do: 0 refuse; 1 soft: take, and tell how much is used, whatever
-- it is; 2 audit: tell that they would have refused, and then take nothing there.
--
-- KEYS  1 {t}:limits  hash: at (time of the last call), period (of the last ask), requests, tokens, input and output:
--                     the buckets, each "<level> <at> <full_at>"; held: tokens reserved by the leases; slices: how many
--                     of the leases only extend another. Beside it {t}:limits:<scope> and <shared_prefix>scope:<scope>:
--                     the buckets, running (leases) and held of another scope
--       2 {t}:leases  zset: member -> expiry_ms;  member = "<request>|<unique>|<reserved nanousd>|<period>", and
--                     "|<reserved tokens>|<window>,<window>..|<scope>,<scope>.." after it where there are limits beyond
--                     the first four; the tenant's own scope is not named. A slice's <unique> ends with "s"
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
--        13 asks {member, tokens, nanousd, input, output, most_tokens, scopes, ..}: tokens, input and output are what the
--           buckets give; most_tokens is what a window and concurrent_tokens hold; scopes, false or an array, are
--           numbers in 18. An ask that is a slice takes no place in requests/min nor among the running,
--           and limits per minute do not refuse it: what it takes of them beyond is their debt
--        14 booking, or false:
--           { first, skips, producer, producer_ttl_s, events_after_ms,
--             settlements {number, member, period, windows, reserved_tokens, reserved_ms, used_tokens, cost_nanousd,
--                          requests_back (1: it never ran, so its place in requests/min is given back),
--                          reserved_input, used_input, reserved_output, used_output, ..},
--             usage { {ttl_s (0: kept), field, increment (decimal string), ..}, .. } one per usage key, in order }
--           A booking is applied if `first` is the number after the producer's last, or skips = 1 and it is higher: so a
--           resend changes nothing. Events booked before events_after_ms leave the stream.
--        15 window_prefix, the windows' name before the period   16 window_ttl_s
--        17 more, or false where the tenant has no further limits: { input_tokens_per_minute, output_tokens_per_minute,
--           concurrent_tokens, checks {dimension, window, limit (tokens or nanousd), ends_ms, ..} }
--        18 scopes, or false: { {name, mode, requests_per_minute, tokens_per_minute, concurrent_requests, more}, .. }
--        19 shared_prefix   20 the tenant's name where some of 18 are shared, else ''
--       2.. the booking's events, JSON, numbered from first
-- returns MessagePack array { now_ms, last, verdicts }
--   last      the producer's last record booked here, this call's included
--   verdicts  one array per ask: { dimension, requests_remaining, requests_reset_ms, tokens_remaining,
--             tokens_reset_ms, asked, available, retry_after_ms, spent_nanousd, reserved_nanousd, scope,
--             requests_scope, tokens_scope, notes, member }; only the first five when granted by the tenant's own limits
--             alone
--   dimension 0 granted, else refused by 1 requests_per_minute, 2 tokens_per_minute, 3 concurrent_requests,
--             4 budget_usd, 5 input_tokens_per_minute, 6 output_tokens_per_minute, 7 concurrent_tokens,
--             8 tokens_per_day, 9 usd_per_hour, 10 usd_per_day, 11 usd_per_month: the one that takes longest.
--             retry_after_ms -1: waiting does not help. spent and reserved are of the window that refused.
--   scope     whose limit refused: 0 the tenant's, else its number in 18. requests_scope and tokens_scope are whose
--             buckets are told of: the one with the least left of those that refuse.
--   reset_ms  until the bucket is full; of an unlimited bucket everything is -1.
--   notes     {scope, dimension, percent, ..}: percent used of a soft limit that is used by half; -1: an audited one that
--             would have refused
--   member    the lease's, where it is not the one that was asked for: it takes nothing from what would have refused
--
-- Buckets are counted in 1/60000 of a request or token, so that a limit per minute refills whole units per ms.
-- All numbers stay below 2^53, where a double is exact; sums that could grow beyond are left to HINCRBY.

local UNIT = 60000
local RETRY_SOON_MS = 1000 -- when a running request will end is not known here
local REQUESTS, TOKENS, CONCURRENT, BUDGET, INPUT, OUTPUT, HELD, TOKENS_PER_DAY = 1, 2, 3, 4, 5, 6, 7, 8 -- dimensions
local SOFT, AUDIT = 1, 2
local TOLD_FROM_PERCENT = 50
local AT, SLICE = 64, 115 -- "@", "s"

local call = cmsgpack.unpack(ARGV[1])
local lease_ttl_ms = call[2]
local requests_limit, tokens_limit, leases_limit, budget = call[3], call[4], call[5], call[6]
local period, budget_prefix, budget_ttl_s = call[7], call[8], call[9]
local window_prefix, window_ttl_s = call[15], call[16]
local others, shared_prefix, shared_by = call[18] or {}, call[19], call[20]

local function int(n) return string.format('%.0f', n) end
local function div(a, b) return (a - math.fmod(a, b)) / b end -- whole division, exact where a / b rounds; a, b >= 0
local function div_up(a, b) return div(a + b - 1, b) end
local function is_shared(name) return string.byte(name) == AT end
local function scope_key(name)
  return is_shared(name) and shared_prefix .. 'scope:' .. name or KEYS[1] .. ':' .. name
end
local function window_key(name)
  return is_shared(name) and shared_prefix .. 'window:' .. name or window_prefix .. name
end

local state = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens', 'input', 'output', 'held', 'slices')
local now = math.max(call[1], tonumber(state[1]) or 0)

-- A bucket remembers when it was last full: a refund of something taken before that would be tokens from nowhere,
-- since the refill has already made up for it. One that is shared may have been seen by a clock ahead of ours.
local function cap(b)
  if b.level >= b.capacity then
    b.level = b.capacity
    b.full_at = b.at
  end
end
local function bucket(limit, stored)
  if limit < 0 then return nil end
  local b = { limit = limit, capacity = limit * UNIT, level = limit * UNIT, at = now }
  if stored then
    local level, at, full_at = string.match(stored, '(%S+) (%S+) (%S+)')
    b.at = math.max(now, tonumber(at))
    b.level = tonumber(level) + (b.at - tonumber(at)) * limit
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

-- A scope: its four buckets, and what else it limits. `number` is 0 for the tenant's own.
local BUCKETS = { 'requests', 'tokens', 'input', 'output' }
local DIMENSIONS = { requests = REQUESTS, tokens = TOKENS, input = INPUT, output = OUTPUT }
local function scope(number, name, mode, of_requests, of_tokens, concurrent, more, stored)
  return {
    number = number, name = name, mode = mode, concurrent = concurrent,
    held_limit = more and more[3] or -1, windows = more and more[4] or {},
    requests = bucket(of_requests, stored[1]), tokens = bucket(of_tokens, stored[2]),
    input = more and bucket(more[1], stored[3]), output = more and bucket(more[2], stored[4]),
    running = tonumber(stored[5]) or 0, held = tonumber(stored[6]) or 0,
  }
end
local tenant = scope(0, '', 0, requests_limit, tokens_limit, leases_limit, call[17],
  { state[2], state[3], state[4], state[5], false, state[6] })
local scopes, scope_named = {}, {}
for i, s in ipairs(others) do
  local stored = redis.call('HMGET', scope_key(s[1]), 'requests', 'tokens', 'input', 'output', 'running', 'held')
  scopes[i] = scope(i, s[1], s[2], s[3], s[4], s[5], s[6], stored)
  scope_named[s[1]] = scopes[i]
end
local slices_before, slices = tonumber(state[7]) or 0, tonumber(state[7]) or 0

-- Money is collected per period and written once, by increments.
local spent_by, reserved_by = {}, {}
local function add(sums, key, n) sums[key] = (sums[key] or 0) + n end

-- So are the windows, and the tokens that leases hold.
local window_spent, window_reserved, window_tokens, window_tokens_reserved = {}, {}, {}, {}
local held_before = tenant.held
local running_by, held_by = {}, {}

-- What a lease reserves is taken (sign 1) or given back (-1), where the lease says that it belongs.
local function hold(member, sign)
  local unique, nanousd, lease_period, rest = string.match(member, '^[^|]*|([^|]*)|(%d+)|([^|]*)(.*)$')
  nanousd = tonumber(nanousd)
  local is_slice = string.byte(unique, -1) == SLICE
  if is_slice then slices = slices + sign end
  if nanousd > 0 then add(reserved_by, lease_period, sign * nanousd) end
  if rest ~= '' then
    local most_tokens, windows, of_scopes = string.match(rest, '^|(%d+)|([^|]*)|?(.*)$')
    most_tokens = tonumber(most_tokens)
    tenant.held = tenant.held + sign * most_tokens
    for window in string.gmatch(windows, '[^,]+') do
      add(window_reserved, window, sign * nanousd)
      add(window_tokens_reserved, window, sign * most_tokens)
    end
    for name in string.gmatch(of_scopes, '[^,]+') do
      if not is_slice then add(running_by, name, sign) end
      add(held_by, name, sign * most_tokens)
      local s = scope_named[name]
      if s then
        if not is_slice then s.running = s.running + sign end
        s.held = s.held + sign * most_tokens
      end
    end
  end
end

-- To the buckets of all scopes that a lease took from: what it reserved and did not use; less than nothing is a debt.
local function refund(member, reserved_ms, requests, tokens, input, output)
  local function refund_of(s)
    if s.tokens then give_back(s.tokens, tokens, reserved_ms) end
    if s.input then give_back(s.input, input, reserved_ms) end
    if s.output then give_back(s.output, output, reserved_ms) end
    if s.requests and requests > 0 then give_back(s.requests, requests, reserved_ms) end
  end
  refund_of(tenant)
  local of_scopes = string.match(member, '^[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|(.*)$')
  for name in string.gmatch(of_scopes or '', '[^,]+') do
    if scope_named[name] then refund_of(scope_named[name]) end
  end
end
local function takes_place(member) return not string.match(member, '^[^|]*|[^|]*s|') end

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
    refund(member, reserved_ms, takes_place(member) and 1 or 0, reserved_tokens, releases[i + 3], releases[i + 4])
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
        refund(members[i], reserved_ms, requests_back, reserved_tokens - used_tokens,
          settlements[s + 9] - settlements[s + 10], settlements[s + 11] - settlements[s + 12])
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

-- What a scope's windows have used and reserved. The tenant's budget is one of them.
local function load_checks(s)
  s.checks = {}
  if s == tenant and budget >= 0 then
    local money = redis.call('HMGET', budget_prefix .. period, 'spent', 'reserved')
    s.checks[1] = {
      dimension = BUDGET, limit = budget, ends_ms = math.huge,
      used = (tonumber(money[1]) or 0) + (spent_by[period] or 0),
      reserved = (tonumber(money[2]) or 0) + (reserved_by[period] or 0),
    }
  end
  for i = 1, #s.windows, 4 do
    local d, window = s.windows[i], s.windows[i + 1]
    local counts_tokens = d == TOKENS_PER_DAY
    local stored = redis.call('HMGET', window_key(window), counts_tokens and 'tokens' or 'spent',
      counts_tokens and 'tokens_reserved' or 'reserved')
    s.checks[#s.checks + 1] = {
      dimension = d, limit = s.windows[i + 2], ends_ms = s.windows[i + 3], counts_tokens = counts_tokens,
      used = (tonumber(stored[1]) or 0) + ((counts_tokens and window_tokens or window_spent)[window] or 0),
      reserved = (tonumber(stored[2]) or 0) +
        ((counts_tokens and window_tokens_reserved or window_reserved)[window] or 0),
    }
  end
end

-- Tells `refuse` of each of a scope's limits that this ask does not keep.
local function check(s, ask, refuse)
  for _, c in ipairs(s.checks) do
    local what = c.counts_tokens and ask.most_tokens or ask.nanousd
    if c.used + c.reserved + what > c.limit then
      local wait = RETRY_SOON_MS
      if what > c.limit then
        wait = math.huge
      elseif c.used + what > c.limit then
        wait = math.max(1, c.ends_ms - now)
      end
      refuse(s, c.dimension, wait, what, math.max(0, c.limit - c.used - c.reserved), c.used, c.reserved)
    end
  end
  if s.held_limit >= 0 and s.held + ask.most_tokens > s.held_limit then
    refuse(s, HELD, ask.most_tokens > s.held_limit and math.huge or RETRY_SOON_MS, ask.most_tokens,
      math.max(0, s.held_limit - s.held))
  end
  if ask.places > 0 then
    if s.input then refuse(s, INPUT, wait_ms(s.input, ask.input), ask.input, remaining(s.input)) end
    if s.output then refuse(s, OUTPUT, wait_ms(s.output, ask.output), ask.output, remaining(s.output)) end
    if s.tokens then refuse(s, TOKENS, wait_ms(s.tokens, ask.tokens), ask.tokens, remaining(s.tokens)) end
    if s.requests then refuse(s, REQUESTS, wait_ms(s.requests, 1), 1, remaining(s.requests)) end
    if s.concurrent >= 0 and s.running >= s.concurrent then refuse(s, CONCURRENT, RETRY_SOON_MS, 1, 0) end
  end
end

-- `held` and `running` are taken with the lease.
local function take(s, ask)
  local function from(b, amount)
    if b then
      b.level = b.level - amount * UNIT
      -- A soft limit is never further in debt than what refills in a minute.
      if s.mode == SOFT then b.level = math.max(b.level, -b.capacity) end
    end
  end
  from(s.requests, ask.places)
  from(s.tokens, ask.tokens)
  from(s.input, ask.input)
  from(s.output, ask.output)
  for _, c in ipairs(s.checks) do
    c.reserved = c.reserved + (c.counts_tokens and ask.most_tokens or ask.nanousd)
  end
end

-- How much of a soft scope's limits is used, for each that is by half.
local function tell_used(s, notes)
  local function note(d, used, limit)
    local percent = limit > 0 and math.floor(100 * used / limit) or 100
    if percent >= TOLD_FROM_PERCENT then
      notes[#notes + 1], notes[#notes + 2], notes[#notes + 3] = s.number, d, math.min(percent, 1000000)
    end
  end
  for _, name in ipairs(BUCKETS) do
    local b = s[name]
    if b then note(DIMENSIONS[name], b.capacity - b.level, b.capacity) end
  end
  if s.concurrent >= 0 then note(CONCURRENT, s.running, s.concurrent) end
  if s.held_limit >= 0 then note(HELD, s.held, s.held_limit) end
  for _, c in ipairs(s.checks) do note(c.dimension, c.used, c.limit) end
end

-- The lease of an ask that takes from nothing of the scopes `left_out`: it names neither them nor their windows.
local function without(left_out, member, taken)
  local base, windows = string.match(member, '^([^|]*|[^|]*|[^|]*|[^|]*|[^|]*)|([^|]*)|')
  local kept_windows, names, gone = {}, {}, {}
  for _, s in ipairs(left_out) do
    for w = 2, #s.windows, 4 do gone[s.windows[w]] = true end
  end
  for window in string.gmatch(windows, '[^,]+') do
    if not gone[window] then kept_windows[#kept_windows + 1] = window end
  end
  for _, s in ipairs(taken) do
    local has_state = s.requests or s.tokens or s.input or s.output or s.concurrent >= 0 or s.held_limit >= 0
    if has_state then names[#names + 1] = s.name end
  end
  return base .. '|' .. table.concat(kept_windows, ',') .. '|' .. table.concat(names, ',')
end

if #asks > 0 then
  tenant.running = leases_limit >= 0 and redis.call('ZCARD', KEYS[2]) - slices or 0
  load_checks(tenant)
  for _, s in ipairs(scopes) do load_checks(s) end
  local entries = {}
  for i = 1, #asks, 7 do
    local member = asks[i]
    local ask = {
      tokens = asks[i + 1], nanousd = asks[i + 2], input = asks[i + 3], output = asks[i + 4],
      most_tokens = asks[i + 5], places = takes_place(member) and 1 or 0,
    }
    local of = asks[i + 6] or {}
    local dimension, longest, asked, available, used, kept, number = 0, 0, 0, 0, 0, 0, 0
    local function refuse(s, d, wait, what, left, is_used, is_kept)
      if wait > longest then
        dimension, longest, asked, available, used, kept = d, wait, what, left, is_used or 0, is_kept or 0
        number = s.number
      end
    end
    check(tenant, ask, refuse)
    local taken, left_out, notes, held_as = {}, {}, {}, ''
    for _, n in ipairs(of) do
      local s = scopes[n]
      if s.mode == AUDIT then
        local would, wait_longest = nil, 0
        check(s, ask, function(_, d, wait)
          if wait > wait_longest then would, wait_longest = d, wait end
        end)
        if would then
          notes[#notes + 1], notes[#notes + 2], notes[#notes + 3] = n, would, -1
          left_out[#left_out + 1] = s
        else
          taken[#taken + 1] = s
        end
      else
        if s.mode ~= SOFT then check(s, ask, refuse) end
        taken[#taken + 1] = s
      end
    end

    if dimension == 0 then
      if #left_out > 0 then
        member = without(left_out, member, taken)
        held_as = member
      end
      take(tenant, ask)
      for _, s in ipairs(taken) do take(s, ask) end
      hold(member, 1)
      tenant.running = tenant.running + ask.places
      entries[#entries + 1] = int(now + lease_ttl_ms)
      entries[#entries + 1] = member
    end
    for _, s in ipairs(taken) do
      if s.mode == SOFT then tell_used(s, notes) end
    end
    local of_requests, of_tokens = tenant, tenant
    for _, n in ipairs(of) do
      local s = scopes[n]
      if s.mode == 0 then
        if s.requests and (not of_requests.requests or remaining(s.requests) < remaining(of_requests.requests)) then
          of_requests = s
        end
        if s.tokens and (not of_tokens.tokens or remaining(s.tokens) < remaining(of_tokens.tokens)) then
          of_tokens = s
        end
      end
    end
    local verdict = { dimension, remaining(of_requests.requests), reset_ms(of_requests.requests),
      remaining(of_tokens.tokens), reset_ms(of_tokens.tokens) }
    if dimension ~= 0 or #of > 0 then
      for _, value in ipairs({ asked, available, longest == math.huge and -1 or longest, used, kept, number,
        of_requests.number, of_tokens.number, notes, held_as }) do
        verdict[#verdict + 1] = value
      end
    end
    verdicts[#verdicts + 1] = verdict
  end
  if #entries > 0 then redis.call('ZADD', KEYS[2], unpack(entries)) end
end

-- 6. Write down what changed.
local function increment(key_of, ttl_s, field, sums)
  for name, n in pairs(sums) do
    if n ~= 0 then
      local key = key_of(name)
      if redis.call('HINCRBY', key, field, int(n)) == n then redis.call('EXPIRE', key, int(ttl_s)) end
    end
  end
end
local function budget_key(sum_period) return budget_prefix .. sum_period end
increment(budget_key, budget_ttl_s, 'spent', spent_by)
increment(budget_key, budget_ttl_s, 'reserved', reserved_by)
increment(window_key, window_ttl_s, 'spent', window_spent)
increment(window_key, window_ttl_s, 'reserved', window_reserved)
increment(window_key, window_ttl_s, 'tokens', window_tokens)
increment(window_key, window_ttl_s, 'tokens_reserved', window_tokens_reserved)
increment(scope_key, window_ttl_s, 'running', running_by)
increment(scope_key, window_ttl_s, 'held', held_by)
local function keep(fields, s)
  for _, name in ipairs(BUCKETS) do
    local b = s[name]
    if b then
      fields[#fields + 1] = name
      fields[#fields + 1] = int(b.level) .. ' ' .. int(b.at) .. ' ' .. int(b.full_at)
    end
  end
end
local fields = { 'at', int(now) }
if #asks > 0 then
  fields[3], fields[4] = 'period', period
end
keep(fields, tenant)
if tenant.held ~= held_before then
  fields[#fields + 1], fields[#fields + 2] = 'held', int(tenant.held)
end
if slices ~= slices_before then
  fields[#fields + 1], fields[#fields + 2] = 'slices', int(slices)
end
redis.call('HSET', KEYS[1], unpack(fields))
for _, s in ipairs(scopes) do
  local of_scope = {}
  keep(of_scope, s)
  if #of_scope > 0 then redis.call('HSET', scope_key(s.name), unpack(of_scope)) end
  redis.call('EXPIRE', scope_key(s.name), int(window_ttl_s))
end

-- 7. What a killed worker holds of a shared scope comes back with the tenant's next call. This is when one is due.
if shared_by ~= '' then
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if #first > 0 then
    redis.call('ZADD', shared_prefix .. 'due', first[2], shared_by)
  else
    redis.call('ZREM', shared_prefix .. 'due', shared_by)
  end
end

return cmsgpack.pack({ now, last, verdicts })
