-- engine.lua: what one replica's counters have added since they were last read, in one atomic step.
-- Only the holder of the replica's lease writes, and only on top of the reading it started from: of two readers that
-- overlap one is refused, and after a fail-over that lost the last write nothing is left out or counted twice.
--
-- KEYS  1 {replica}:lease  string: who reads this replica    2 {replica}:last  hash: reading, at, sent
--       3 {replica}:engine:<minute>  hash: "<epoch>|<metric>"
--       4 {replica}:sent  hash: worker -> "<requests sent> <updated_ms> <oldest_open_ms>"
-- ARGV  1 holder    2 lease_ttl_ms    3 `at` of the reading that this one was compared with ('' for none)
--       4 `at` of this reading    5 the reading    6 epoch    7 ttl_s of the minute's hash
--       8 is_first: 1 if this reading opens its epoch, so that requests sent before it belong to none
--       9 opened_from   10 opened_to   11 closed_from   12 closed_to (Unix ms, decimal strings)
--      13 running, sequences that had not ended
--      14.. metric, increment (decimal string), ..
-- returns 1 booked, 0 not the holder any more, -1 another reading came first

local DAY_MS = 86400000

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local last = redis.call('HMGET', KEYS[2], 'at', 'sent')
if (last[1] or '') ~= ARGV[3] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])

-- A worker that has not written for a day is gone: its count leaves the sum, and the sum to compare with next time.
local sent, gone = 0, 0
local workers = redis.call('HGETALL', KEYS[4])
for i = 1, #workers, 2 do
  local count, updated_ms = string.match(workers[i + 1], '^(%d+) (%d+)')
  sent = sent + tonumber(count)
  if tonumber(ARGV[12]) - tonumber(updated_ms) > DAY_MS then
    gone = gone + tonumber(count)
    redis.call('HDEL', KEYS[4], workers[i])
  end
end
local epoch = ARGV[6] .. '|'
redis.call('HSETNX', KEYS[3], epoch .. 'opened_from', ARGV[9])
redis.call('HSETNX', KEYS[3], epoch .. 'opened_to', ARGV[10])
redis.call('HSET', KEYS[3], epoch .. 'closed_from', ARGV[11], epoch .. 'closed_to', ARGV[12],
  epoch .. 'running', ARGV[13])
for i = 14, #ARGV, 2 do
  if ARGV[i + 1] ~= '0' then redis.call('HINCRBY', KEYS[3], epoch .. ARGV[i], ARGV[i + 1]) end
end
local more = sent - (tonumber(last[2]) or sent)
if ARGV[8] ~= '1' and more > 0 then
  redis.call('HINCRBY', KEYS[3], epoch .. 'sent', string.format('%.0f', more))
end
redis.call('EXPIRE', KEYS[3], ARGV[7])
redis.call('HSET', KEYS[2], 'reading', ARGV[5], 'at', ARGV[4], 'sent', string.format('%.0f', sent - gone))
return 1
