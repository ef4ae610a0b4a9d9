-- share.lua: what one gateway worker tells the others that use the same model's replicas, what it hears of them, who of
-- them adapts the replicas' limits, and what each is granted of these.
--
-- KEYS  1 {model}:gateways  hash: worker -> MessagePack { at_ms, number of the last growth it told, grants, told }
--       2 {model}:given     stream: by (a worker), growth: what it gave tenants; of the last KEPT_MS
--       3 {model}:knee      hash: leader, until_ms; limits: MessagePack, as in ARGV 6; called_ms, awake_ms: anybody's
--         last call, and the first one after a time without any
-- ARGV  1 worker
--       2 number   3 growth, opaque text ('': none). A growth is written if its number is higher than the worker's last,
--         so a resend changes nothing
--       4 after, the entry up to which the worker has read ('': it has just started and reads what is kept)
--       5 told, opaque text for the others
--       6 limits, MessagePack { { replica, sequences, prefill_tokens, kv_tokens }, .. }: as this worker knows them. They
--         are kept if it leads, or where none are
--       7 wants, MessagePack { { replica, sequences, lane }, .. }
-- returns MessagePack array { after, growths {of other workers, ..}, leads, limits, grants, others { {worker, told}, .. } }
--   grants  as wants, and how many sequences are left. Of a replica's a worker is granted what it wants, but no more
--           than the others leave or it has; the lane (1) goes to one at a time. So grants are never above a limit, but
--           where that has fallen and workers have not called since.
-- Whoever is silent for SILENT_MS has nothing and leads nobody; where all were, since Redis could not be reached, all
-- have time to speak again. Time is Redis' own.

local SILENT_MS = 2500 -- five calls missed; what is heard is half a second old: 3 s in all
local AWAY_MS = 1000 -- nobody has called twice over
local FORGET_MS = 60000 -- a worker's number outlives it for so long
local EXPIRE_MS = 3600000 -- longer than an outage
local KEPT_MS = 10000

local function int(n) return string.format('%.0f', n) end

local worker, number, growth, after, told = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local knee = redis.call('HMGET', KEYS[3], 'leader', 'until_ms', 'limits', 'called_ms', 'awake_ms')
local awake = tonumber(knee[5]) or 0
if now - (tonumber(knee[4]) or 0) > AWAY_MS then awake = now end

local last_number, mine, others = 0, {}, {}
local taken, lane_taken = {}, {}
local workers = redis.call('HGETALL', KEYS[1])
for i = 1, #workers, 2 do
  local record = cmsgpack.unpack(workers[i + 1])
  local silent_ms = now - math.max(record[1], awake)
  local is_heard = silent_ms <= SILENT_MS
  if silent_ms > FORGET_MS then
    redis.call('HDEL', KEYS[1], workers[i])
  elseif workers[i] == worker then
    last_number = record[2]
    for _, grant in ipairs(is_heard and record[3] or {}) do mine[grant[1]] = grant[2] end
  elseif is_heard then
    others[#others + 1] = { workers[i], record[4] }
    for _, grant in ipairs(record[3]) do
      taken[grant[1]] = (taken[grant[1]] or 0) + grant[2]
      lane_taken[grant[1]] = lane_taken[grant[1]] or grant[3] == 1
    end
  end
end

-- Read before it is written: a worker's own growth is not news to it.
local growths = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], after == '' and '-' or '(' .. after, '+')) do
  if entry[2][2] ~= worker then growths[#growths + 1] = entry[2][4] end
end
if growth ~= '' and number > last_number then
  redis.call('XADD', KEYS[2], 'MINID', '=', int(math.max(0, now - KEPT_MS)), '*',
    'by', worker, 'growth', growth)
  redis.call('PEXPIRE', KEYS[2], EXPIRE_MS)
  last_number = number
end
-- Its newest entry, not `after`: where Redis has lost the stream, or its clock has gone back, what comes next is read.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]

local led = knee[1] == worker
local leads = led or (tonumber(knee[2]) or 0) < now
-- Who takes over goes on from what was found before.
local limits = cmsgpack.unpack((led or not knee[3]) and ARGV[6] or knee[3])
if leads then
  redis.call('HSET', KEYS[3], 'leader', worker, 'until_ms', int(now + SILENT_MS), 'limits', cmsgpack.pack(limits))
end
redis.call('HSET', KEYS[3], 'called_ms', int(now), 'awake_ms', int(awake))
redis.call('PEXPIRE', KEYS[3], EXPIRE_MS)

local most = {}
for _, limit in ipairs(cmsgpack.unpack(ARGV[6])) do most[limit[1]] = limit[2] end
for _, limit in ipairs(limits) do most[limit[1]] = limit[2] end
local grants = {}
for i, want in ipairs(cmsgpack.unpack(ARGV[7])) do
  local replica = want[1]
  local left = (most[replica] or 0) - (taken[replica] or 0)
  local granted = math.max(0, math.min(want[2], math.max(left, mine[replica] or 0)))
  grants[i] = { replica, granted, want[3] == 1 and not lane_taken[replica] and 1 or 0, left - granted }
end

redis.call('HSET', KEYS[1], worker, cmsgpack.pack({ now, last_number, grants, told }))
redis.call('PEXPIRE', KEYS[1], EXPIRE_MS)
return cmsgpack.pack({ last and last[1] or '', growths, leads and 1 or 0, limits, grants, others })
