-- Makes an empty shard this model's. Running it twice is harmless.
--   ARGV[2]  the description: format, shard count and tables, as text that must be equal
--   ARGV[3]  which tables are scanned, as text. A shard that was filled for others lacks an order, or keeps one that is not
--            kept up to date any more: from now on it holds nothing, and is loaded again.

local held = redis.call('HMGET', meta, 'model_id', 'description')
if not held[1] then
  redis.call('DEL', meta)
  redis.call('HSET', meta, 'model_id', ARGV[1], 'description', ARGV[2], 'scanned', ARGV[3])
  return {'ok', -1}
end
if held[1] ~= ARGV[1] then return {'foreign', held[1]} end
if held[2] ~= ARGV[2] then return {'mismatch', held[2] or ''} end
if (redis.call('HGET', meta, 'scanned') or '') ~= ARGV[3] then
  redis.call('HDEL', meta, 'epoch', 'loading', 'token', 'part')
  redis.call('HSET', meta, 'scanned', ARGV[3])
end
return {'ok', applied_epoch() or -1}
