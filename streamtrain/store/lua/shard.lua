-- Stands before every other script. One call sees one shard of one model:
--   KEYS[1]       the shard's meta hash
--   KEYS[2], ...  rows hashes of the shard: all of its tables, but for `pull` the one that is read
--   ARGV[1]       the model's id
-- Every answer is {status, number or text, ...}; the number is an epoch, -1 where there is none.
-- Feature ids stay strings of 8 bytes: a Lua number is a double and holds only 53 bits of them.

local meta = KEYS[1]

-- The sorted set beside a rows hash that is scanned: a member of each id, its ticket (4 bytes, big-endian) and then the id, all
-- of score 0, so that they lie in the order of tickets. Of the same hash tag, so on the same server. Its name is also
-- the field of `meta` that says how many members it was left with.
local function order_of(rows_key)
  return rows_key .. ':order'
end

-- The epoch up to which the rows are whole, or nil where nothing here can be trusted: never filled, in the middle
-- of a load, or a rows hash that lost or gained rows by another hand (DEL, an eviction) since a script left it.
local function applied_epoch()
  local epoch = redis.call('HGET', meta, 'epoch')
  if not epoch then return nil end
  for i = 2, #KEYS do
    local rows, ordered = unpack(redis.call('HMGET', meta, KEYS[i], order_of(KEYS[i])))
    if redis.call('HLEN', KEYS[i]) ~= tonumber(rows or 0) then return nil end
    if ordered and redis.call('ZCARD', order_of(KEYS[i])) ~= tonumber(ordered) then return nil end
  end
  return tonumber(epoch)
end

-- The answer for a shard that is not this model's, or nil.
local function stranger()
  local model_id = redis.call('HGET', meta, 'model_id')
  if model_id == ARGV[1] then return nil end
  if model_id then return {'foreign', model_id} end
  return {'unclaimed', -1}
end
