-- share.lua: what one gateway worker tells the others that use the same model's replicas, and what it hears of them.
--
-- KEYS  1 {model}:gateways  hash: worker -> MessagePack { at_ms, number of the last growth it told }
--       2 {model}:given     stream: by (a worker), growth: what it gave tenants; of the last KEPT_MS
-- ARGV  1 worker
--       2 number   3 growth, opaque text ('': none). A growth is written if its number is higher than the worker's last,
--         so a resend changes nothing
--       4 after, the entry up to which the worker has read ('': it has just started and reads what is kept)
-- returns MessagePack array { after, growths {of other workers, ..} }
-- Time is Redis' own.

local FORGET_MS = 60000 -- a worker's number outlives an outage
local KEPT_MS = 10000

local worker, number, growth, after = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local told = 0
local workers = redis.call('HGETALL', KEYS[1])
for i = 1, #workers, 2 do
  local record = cmsgpack.unpack(workers[i + 1])
  if workers[i] == worker then
    told = record[2]
  elseif now - record[1] > FORGET_MS then
    redis.call('HDEL', KEYS[1], workers[i])
  end
end

-- Read before it is written: a worker's own growth is not news to it.
local growths = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], after == '' and '-' or '(' .. after, '+')) do
  if entry[2][2] ~= worker then growths[#growths + 1] = entry[2][4] end
end
if growth ~= '' and number > told then
  redis.call('XADD', KEYS[2], 'MINID', '=', string.format('%.0f', math.max(0, now - KEPT_MS)), '*',
    'by', worker, 'growth', growth)
  redis.call('PEXPIRE', KEYS[2], FORGET_MS)
  told = number
end
-- Its newest entry, not `after`: where Redis has lost the stream, or its clock has gone back, what comes next is read.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]

redis.call('HSET', KEYS[1], worker, cmsgpack.pack({ now, told }))
redis.call('PEXPIRE', KEYS[1], FORGET_MS)
return cmsgpack.pack({ last and last[1] or '', growths })
