-- gpu.lua: a replica's GPUs are there now. Its present span of time goes on until now, or a new one begins.
--
-- KEYS  1 {replica}:gpu  hash: a span's start in Unix seconds -> "<end> <terms>"; last: the start of the latest
-- ARGV  1 now, Unix seconds
--       2 gap: a span goes on after so many seconds without a word
--       3 terms, opaque text: what is there and what it costs. When they change a span ends and one begins, without a
--         second between them
-- returns 1. A call by a clock that is behind the last one's changes nothing, so many may tell of one replica.

local now, gap, terms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local start = redis.call('HGET', KEYS[1], 'last')
if start then
  local span = redis.call('HGET', KEYS[1], start)
  local space = string.find(span, ' ', 1, true)
  local ended, before = tonumber(string.sub(span, 1, space - 1)), string.sub(span, space + 1)
  if now <= ended then return 1 end
  if now - ended <= gap then
    redis.call('HSET', KEYS[1], start, ARGV[1] .. ' ' .. before)
    if before == terms then return 1 end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[1] .. ' ' .. terms, 'last', ARGV[1])
return 1
