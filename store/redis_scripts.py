"""What callboard keeps in a Redis database, and the scripts that read and write it, each at one stroke.

    {prefix}:meta               hash: format, owner, streams (the last numbers given out)
    {prefix}:writer             the connection that may write, see redis_connections.py
    {prefix}:names              sorted set of the names of all streams
    {prefix}:numbers            hash: stream number -> name
    {prefix}:s:name             hash: n(umber), e(poch), v(ersion), h(ead) of a stream
    {prefix}:k:number table     sorted set of the keys of the rows of one table
    {prefix}:r:number table     hash: key -> value
    {prefix}:i:index            sorted set of the entries of an index: value* 00 number, escaped as in keys.py
    {prefix}:l:number           sorted set of the entries of one stream: index value

- All scores are 0: then a sorted set keeps its members in byte order. Numbers are 8 bytes big-endian, tables and
  indexes one byte.
- Lua has only floating point: epochs and versions stay text of 8 bytes, compared in halves (its `<` for text would ask
  the server's locale).
- A script that has begun to write is not rolled back, so all is checked before the first write, and nothing after
  that can fail by itself. COMMIT answers with the guards where one is not as it must be; then nothing was written.

Source: https://redis.io/docs/latest/develop/programmability/eval-intro (atomicity), ZRANGEBYLEX (byte order).
"""

import hashlib

__all__ = ["COMMIT", "ENTRIES", "FORMAT", "SCAN", "SCAN_INDEX", "Script"]

FORMAT = 1


class Script:
    """A script's text, and the name by which a server that has it already knows it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS[1]: the prefix. ARGV: of each change its name, built_on, epoch_max, epoch, version, "1" to erase or "0"; and five
# lists, each behind its length: heads (none or one), puts (table, key, value, ...), deletes (table, key, ...), adds and
# removes (index, value, escaped value, ...). Plain arguments, as older servers' cmsgpack knows no bytes.
COMMIT = Script("""
local prefix = KEYS[1]
local NEVER = string.rep('\\0', 8)
local at = 0

local function next_argument()
    at = at + 1
    return ARGV[at]
end

local function next_list()
    local list = {}
    for place = 1, tonumber(next_argument()) do
        list[place] = next_argument()
    end
    return list
end

local changes = {}
while at < #ARGV do
    local change = {}
    for field = 1, 6 do
        change[field] = next_argument()
    end
    for field = 7, 11 do
        change[field] = next_list()
    end
    changes[#changes + 1] = change
end

local function newer(a, b)
    local a_high, a_low = struct.unpack('>I4I4', a)
    local b_high, b_low = struct.unpack('>I4I4', b)
    return a_high > b_high or (a_high == b_high and a_low > b_low)
end

local guards, numbers, fits = {}, {}, true
for place, change in ipairs(changes) do
    local stored = redis.call('HMGET', prefix .. ':s:' .. change[1], 'e', 'v', 'n')
    local epoch, version = stored[1] or NEVER, stored[2] or NEVER
    guards[place] = {change[1], epoch, version}
    numbers[place] = stored[3]
    fits = fits and version == change[2] and not newer(epoch, change[3])
end
if not fits then
    return guards
end

for place, change in ipairs(changes) do
    local name, number = change[1], numbers[place]
    local stream = prefix .. ':s:' .. name
    if not number then
        number = struct.pack('>I8', redis.call('HINCRBY', prefix .. ':meta', 'streams', 1))
        redis.call('HSET', prefix .. ':numbers', number, name)
        redis.call('ZADD', prefix .. ':names', 0, name)
        redis.call('HSET', stream, 'n', number, 'h', '')
    end
    redis.call('HSET', stream, 'e', change[4], 'v', change[5])
    if #change[7] > 0 then
        redis.call('HSET', stream, 'h', change[7][1])
    end

    local keys, rows, listed = prefix .. ':k:' .. number, prefix .. ':r:' .. number, prefix .. ':l:' .. number
    if change[6] == '1' then
        for table = 1, 255 do
            local byte = string.char(table)
            redis.call('UNLINK', keys .. byte, rows .. byte)
        end
        for _, entry in ipairs(redis.call('ZRANGE', listed, 0, -1)) do
            local escaped = string.gsub(string.sub(entry, 2), '%z', '\\0\\255')
            redis.call('ZREM', prefix .. ':i:' .. string.sub(entry, 1, 1), escaped .. '\\0' .. number)
        end
        redis.call('UNLINK', listed)
    end
    local puts, deletes, adds, removes = change[8], change[9], change[10], change[11]
    for at = 1, #puts, 3 do
        redis.call('ZADD', keys .. puts[at], 0, puts[at + 1])
        redis.call('HSET', rows .. puts[at], puts[at + 1], puts[at + 2])
    end
    for at = 1, #deletes, 2 do
        redis.call('ZREM', keys .. deletes[at], deletes[at + 1])
        redis.call('HDEL', rows .. deletes[at], deletes[at + 1])
    end
    for at = 1, #removes, 3 do
        redis.call('ZREM', prefix .. ':i:' .. removes[at], removes[at + 2] .. '\\0' .. number)
        redis.call('ZREM', listed, removes[at] .. removes[at + 1])
    end
    for at = 1, #adds, 3 do
        redis.call('ZADD', prefix .. ':i:' .. adds[at], 0, adds[at + 2] .. '\\0' .. number)
        redis.call('ZADD', listed, 0, adds[at] .. adds[at + 1])
    end
end
return {}
""")

# ARGV: the stream's name, the table, ZRANGEBYLEX or the other, where to begin, where to end, at most.
# Keys, then values.
SCAN = Script("""
local number = redis.call('HGET', KEYS[1] .. ':s:' .. ARGV[1], 'n')
if not number then
    return {{}, {}}
end
local place = number .. ARGV[2]
local keys = redis.call(ARGV[3], KEYS[1] .. ':k:' .. place, ARGV[4], ARGV[5], 'LIMIT', 0, ARGV[6])
local values = {}
for at, key in ipairs(keys) do
    values[at] = redis.call('HGET', KEYS[1] .. ':r:' .. place, key)
end
return {keys, values}
""")

# ARGV: the index, ZRANGEBYLEX or the other, where to begin, where to end, at most. Entries, then names of streams.
SCAN_INDEX = Script("""
local found = redis.call(ARGV[2], KEYS[1] .. ':i:' .. ARGV[1], ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[5])
local names = {}
for at, entry in ipairs(found) do
    names[at] = redis.call('HGET', KEYS[1] .. ':numbers', string.sub(entry, -8))
end
return {found, names}
""")

# ARGV: the stream's name.
ENTRIES = Script("""
local number = redis.call('HGET', KEYS[1] .. ':s:' .. ARGV[1], 'n')
return number and redis.call('ZRANGE', KEYS[1] .. ':l:' .. number, 0, -1) or {}
""")
