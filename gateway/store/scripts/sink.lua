-- sink.lua: how far a tenant's events have been pushed; only the holder of the latest lease may say so.
--
-- KEYS  1 hash: fence (of the last who wrote), entry (the last that arrived), entries (how many the stream had by then)
-- ARGV  1 fence   2 entry   3 entries; without 2 and 3 it is only claimed, so that earlier holders write no more
-- returns { 1, entry, entries }, or { 0 } when a later holder has claimed it

local held = tonumber(redis.call('HGET', KEYS[1], 'fence')) or 0
if held > tonumber(ARGV[1]) then return { 0 } end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
if ARGV[2] then redis.call('HSET', KEYS[1], 'entry', ARGV[2], 'entries', ARGV[3]) end
local state = redis.call('HMGET', KEYS[1], 'entry', 'entries')
return { 1, state[1] or '', state[2] or '' }
