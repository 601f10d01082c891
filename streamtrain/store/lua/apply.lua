-- Writes one part of an epoch (or of a base) to the shard; the last part sets the applied epoch.
--   ARGV[2]  'apply', or 'load' after begin.lua
--   ARGV[3]  the epoch
--   ARGV[4]  this part's number, from 0
--   ARGV[5]  '1' in the last part
--   ARGV[6]  the token of this attempt
--   then for each of KEYS[2], ...: bytes of a value; packed rows (8 bytes of id, value); packed ids to remove; and of a
--   table that is scanned the tickets, 4 bytes each, of the rows and then of those to remove, '-' of others
--
-- Parts of one attempt are taken in order and once. A part that comes twice, or late from a closed connection, or
-- from a writer that another one overtook, is answered but changes nothing.

-- Even, because HSET takes pairs. Small enough that the strings cut from the blob are still in the processor's cache
-- when HSET copies them: 64 to 256 were fastest, 4096 a third slower; Lua's unpack would fail near 8,000.
local ARGUMENTS_MAX = 256

local function write_rows(key, value_bytes, blob)
  local stride = 8 + value_bytes
  local arguments, n = {}, 0
  for at = 1, #blob, stride do
    arguments[n + 1] = string.sub(blob, at, at + 7)
    arguments[n + 2] = string.sub(blob, at + 8, at + stride - 1)
    n = n + 2
    if n == ARGUMENTS_MAX then
      redis.call('HSET', key, unpack(arguments, 1, n))
      n = 0
    end
  end
  if n > 0 then redis.call('HSET', key, unpack(arguments, 1, n)) end
end

local function remove_rows(key, blob)
  local arguments, n = {}, 0
  for at = 1, #blob, 8 do
    n = n + 1
    arguments[n] = string.sub(blob, at, at + 7)
    if n == ARGUMENTS_MAX then
      redis.call('HDEL', key, unpack(arguments, 1, n))
      n = 0
    end
  end
  if n > 0 then redis.call('HDEL', key, unpack(arguments, 1, n)) end
end

-- ZADD or ZREM of the ids that lie `stride` bytes apart in a blob, whose tickets begin behind byte `skipped` of `tickets`.
local function order_rows(command, key, blob, stride, tickets, skipped)
  local arguments, n = {}, 0
  for at = 1, #blob, stride do
    local ticket = skipped + (at - 1) / stride * 4
    if command == 'ZADD' then
      n = n + 1
      arguments[n] = 0
    end
    n = n + 1
    arguments[n] = string.sub(tickets, ticket + 1, ticket + 4) .. string.sub(blob, at, at + 7)
    if n == ARGUMENTS_MAX then
      redis.call(command, key, unpack(arguments, 1, n))
      n = 0
    end
  end
  if n > 0 then redis.call(command, key, unpack(arguments, 1, n)) end
end

local problem = stranger()
if problem then return problem end

local mode, epoch, part, token = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6]
local applied = applied_epoch()
if applied and applied >= epoch then return {'already', applied} end

local loading, held_token, held_part = unpack(redis.call('HMGET', meta, 'loading', 'token', 'part'))
if mode == 'apply' then
  if applied ~= epoch - 1 then return {'behind', applied or -1} end
elseif loading ~= ARGV[3] then
  return {'lost', -1}
end

local expected
if held_token == token then
  expected = tonumber(held_part)
elseif mode == 'apply' and part == 0 then
  expected = 0
end
if not expected or part > expected then return {'lost', -1} end
if part < expected then return {'ok', applied or -1} end

for i = 2, #KEYS do
  local at = 7 + 4 * (i - 2)
  local value_bytes, rows, removed, tickets = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  write_rows(KEYS[i], value_bytes, rows)
  remove_rows(KEYS[i], removed)
  redis.call('HSET', meta, KEYS[i], redis.call('HLEN', KEYS[i]))
  if tickets ~= '-' then
    local order = order_of(KEYS[i])
    order_rows('ZADD', order, rows, 8 + value_bytes, tickets, 0)
    order_rows('ZREM', order, removed, 8, tickets, #rows / (8 + value_bytes) * 4)
    redis.call('HSET', meta, order, redis.call('ZCARD', order))
  end
end

if ARGV[5] == '1' then
  redis.call('HSET', meta, 'epoch', ARGV[3])
  redis.call('HDEL', meta, 'loading', 'token', 'part')
  return {'ok', epoch}
end
redis.call('HSET', meta, 'token', token, 'part', part + 1)
return {'ok', applied or -1}
