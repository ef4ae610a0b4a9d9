-- search.lua: the events of a part of a stream that hold all of some texts, without sending the others.
-- KEYS  1 stream, its entries' first field is the event
-- ARGV  1 XRANGE or XREVRANGE   2, 3 from and to, as the command takes them   4 entries to look at   5.. texts, plain
-- returns { entries looked at, last of them, { entry, event, .. } }
local entries = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local found = {}
for _, entry in ipairs(entries) do
  local event = entry[2][2]
  local holds = true
  for i = 5, #ARGV do
    if not string.find(event, ARGV[i], 1, true) then
      holds = false
      break
    end
  end
  if holds then
    found[#found + 1] = entry[1]
    found[#found + 1] = event
  end
end
local last = entries[#entries]
return { #entries, last and last[1] or '', found }
