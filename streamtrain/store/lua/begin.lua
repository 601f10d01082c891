-- Empties the shard and opens the load of a base. Until the last part the shard has no epoch, so a crash in the
-- middle shows. A shard that already holds the base's epoch or a later one is left as it is.
--   ARGV[2]  the base's epoch
--   ARGV[3]  the token of this attempt

local problem = stranger()
if problem then return problem end

local epoch = tonumber(ARGV[2])
local applied = applied_epoch()
if applied and applied >= epoch then return {'already', applied} end
local loading = tonumber(redis.call('HGET', meta, 'loading') or -1)
if loading > epoch then return {'stale', loading} end

redis.call('HDEL', meta, 'epoch', unpack(KEYS, 2))
redis.call('UNLINK', unpack(KEYS, 2))
for i = 2, #KEYS do
  redis.call('HDEL', meta, order_of(KEYS[i]))
  redis.call('UNLINK', order_of(KEYS[i]))
end
redis.call('HSET', meta, 'loading', ARGV[2], 'token', ARGV[3], 'part', '0')
return {'ok', -1}
