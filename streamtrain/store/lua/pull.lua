-- Reads many rows of one table.
--   ARGV[2]  the epoch that the shard must have reached
--   ARGV[3]  bytes of a value
--   ARGV[4]  packed ids, 8 bytes each
-- Answers {'ok', epoch, one byte an id ('1' found, '0' not), the values found one after the other}.

-- As in apply.lua.
local FIELDS_MAX = 256

local problem = stranger()
if problem then return problem end

local applied = applied_epoch()
if not applied or applied < tonumber(ARGV[2]) then return {'behind', applied or -1} end

local value_bytes, ids = tonumber(ARGV[3]), ARGV[4]
local found, values = {}, {}
for first = 1, #ids, 8 * FIELDS_MAX do
  local fields = {}
  for at = first, math.min(first + 8 * FIELDS_MAX, #ids + 1) - 8, 8 do
    fields[#fields + 1] = string.sub(ids, at, at + 7)
  end
  for _, value in ipairs(redis.call('HMGET', KEYS[2], unpack(fields))) do
    if value then
      if #value ~= value_bytes then return {'damaged', #value} end
      values[#values + 1] = value
      found[#found + 1] = '1'
    else
      found[#found + 1] = '0'
    end
  end
end
return {'ok', applied, table.concat(found), table.concat(values)}
