-- many.lua: one command for many keys of one tenant, with one reply: a client's work per reply is more than Redis'.
-- KEYS  what to read     ARGV  1 the command, which takes a key alone (HLEN, HGETALL)
-- returns its answers in the order of KEYS
local answers = {}
for i, key in ipairs(KEYS) do answers[i] = redis.call(ARGV[1], key) end
return answers
