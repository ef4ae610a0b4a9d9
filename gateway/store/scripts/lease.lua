-- lease.lua: one holder for the whole fleet, with a number that grows by one with every new holder (a fence).
--
-- KEYS  1 hash: owner, until_ms, fence
-- ARGV  1 owner   2 ttl_ms; 0 lets go
-- returns the fence while ARGV[1] is the owner, 0 when somebody else is. Time is Redis' own.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', KEYS[1], 'owner', 'until_ms', 'fence')
local fence = tonumber(state[3]) or 0
if state[1] ~= ARGV[1] then
  if (tonumber(state[2]) or 0) > now then return 0 end
  fence = fence + 1
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until_ms', string.format('%.0f', now + ARGV[2]), 'fence', fence)
return fence
