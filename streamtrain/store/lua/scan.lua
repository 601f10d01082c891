-- Reads rows of one table in the order of their tickets; see `order_of`.
--   ARGV[2]  the epoch that the shard must have reached
--   ARGV[3]  bytes of a value
--   ARGV[4]  where to begin, as ZRANGEBYLEX has it
--   ARGV[5]  where to end
--   ARGV[6]  how many rows to look at
--   ARGV[7], ARGV[8]  unless they are '-': only rows whose last step lies more than ARGV[8] steps before step ARGV[7]
-- Answers {'ok', epoch, packed ids, the values one after the other, the last member looked at or '' at the end}.

-- As in apply.lua.
local FIELDS_MAX = 256

local problem = stranger()
if problem then return problem end

local applied = applied_epoch()
if not applied or applied < tonumber(ARGV[2]) then return {'behind', applied or -1} end

-- Whether a row is old enough, by the last 4 bytes of its value: the step of its last update, modulo 2^32.
local step, steps = tonumber(ARGV[7]), tonumber(ARGV[8])
local function wanted(value)
  if not step then return true end
  local a, b, c, d = string.byte(value, -4, -1)
  return (step - (a + 256 * (b + 256 * (c + 256 * d)))) % 4294967296 > steps
end

local value_bytes, count = tonumber(ARGV[3]), tonumber(ARGV[6])
local members = redis.call('ZRANGEBYLEX', order_of(KEYS[2]), ARGV[4], ARGV[5], 'LIMIT', 0, count)
local ids, values = {}, {}
for first = 1, #members, FIELDS_MAX do
  local fields = {}
  for at = first, math.min(first + FIELDS_MAX - 1, #members) do
    fields[#fields + 1] = string.sub(members[at], 5)
  end
  for i, value in ipairs(redis.call('HMGET', KEYS[2], unpack(fields))) do
    if not value or #value ~= value_bytes then return {'damaged', value and #value or 0} end
    if wanted(value) then
      ids[#ids + 1] = fields[i]
      values[#values + 1] = value
    end
  end
end
return {'ok', applied, table.concat(ids), table.concat(values), #members == count and members[count] or ''}
