-- Takes the next messages of the first list that has any, and writes down that they are held.
--
-- KEYS: 1 kombu's hash of held messages by delivery tag, 2 its index by the time of taking, 3 the
-- list of broken messages; then for each list, in order, its key and that of the tags held of its
-- lane. ARGV: 1 how many messages may be looked at, 2 how many broken ones are kept, 3 the header
-- that says when a message was sent, 4 the task that messages are for.
--
-- Answers {number of the list, how many broken ones there were, {{tag, message}, ...}}; nothing if
-- all lists are empty.
--
-- A message is written down before it is popped. Redis does not undo what a script did before it
-- failed, so whatever is refused half-way, every message is in its list, or held, or both.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

-- Returns what is to be written down of a message; nothing if it is broken: none for our task, or
-- none that kombu could deliver.
local function read(message)
  local is_json, decoded = pcall(cjson.decode, message)
  if not is_json or type(decoded) ~= 'table' or type(decoded.properties) ~= 'table' then return end
  local tag, info = decoded.properties.delivery_tag, decoded.properties.delivery_info
  if type(tag) ~= 'string' or type(info) ~= 'table' then return end
  if type(info.exchange) ~= 'string' or type(info.routing_key) ~= 'string' then return end
  local headers = decoded.headers
  if type(headers) ~= 'table' or headers.task ~= ARGV[4] then return end
  local sent = tonumber(headers[ARGV[3]]) or now
  return {tag = tag, exchange = info.exchange, routing_key = info.routing_key, sent = sent}
end

for key = 4, #KEYS, 2 do
  local list, held = KEYS[key], KEYS[key + 1]
  local taken, broken = {}, 0
  while #taken + broken < tonumber(ARGV[1]) do
    local message = redis.call('LINDEX', list, -1)
    if not message then break end
    local known = read(message)
    if known then
      redis.call('ZADD', KEYS[2], now, known.tag)
      redis.call('ZADD', held, known.sent, known.tag)
      redis.call('HSET', KEYS[1], known.tag, '[' .. message .. ',' .. cjson.encode(known.exchange)
        .. ',' .. cjson.encode(known.routing_key) .. ']')
      table.insert(taken, {known.tag, message})
    else
      broken = broken + 1
      redis.call('LPUSH', KEYS[3], message)
      redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[2]) - 1)
    end
    redis.call('RPOP', list)
  end
  if #taken + broken > 0 then return {(key - 2) / 2, broken, taken} end
end
