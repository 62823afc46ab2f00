r"""
The store's Lua: what one bucket of sessions does in one atomic step.

A bucket's keys, all behind C{base}, which holds the bucket's hash tag::

    s:<key>        a session: \1, checksum (8 bytes), handle (16), content
    due            ZSET of keys: when a sweep has to look, never after the deadline
    keys           ZSET of keys, all with score 0: the order of L{iterate}
    ends           HASH of ends by handle; a dead letter stays only here
    heard          ZSET of handles: when an end may be claimed (next)
    wish           until when somebody wants to hear of ends
    handles        HASH of keys by handle
    p:<principal>  ZSET of keys, by when they were added
    l:<name>       a lease
    q:<key>        a corrupt value, put aside

The content is a MessagePack array in the order of the fields of
L{Record<twsessions.core.record.Record>}, its key left out; the checksum is the
beginning of the SHA-1 of key, handle and content, which is the one digest that
Lua has here. Whatever starts with another byte than \1 or \0 is a later
release's, or somebody else's, and stays as it is.

C{\0} begins a session that is between two buckets of a cluster (a rotation):
C{{to, token, record}} under the old key, which is dead by then, and
C{{from, token}} under the new one, which is not alive yet. A process that
dies in between leaves both, and a sweep brings the record over.

In a script the first write is one that a server without memory refuses: a
change is refused as a whole or done as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Final

from twsessions.stores._redis.wire import command

__all__ = [
    "ACQUIRE",
    "ARRIVE",
    "ASIDE",
    "CLAIM",
    "COMMIT",
    "FORGET",
    "HINT",
    "LISTEN",
    "RELEASE",
    "RESERVE",
    "SCRIPTS",
    "SETTLE",
    "SWEEP",
    "UNHINT",
    "Script",
]

# The server's time is that of the script's start; skew is for tests.
_CLOCK: Final = r"""
local base = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6 + ARGV[1]
local stamp = string.format('%.17g', now)
"""

_RECORD: Final = r"""
local pack, unpack = cmsgpack.pack, cmsgpack.unpack
local aside = {}

local function bin(s)
  local n = #s
  if n < 256 then return '\196' .. string.char(n) .. s end
  if n < 65536 then return '\197' .. struct.pack('>I2', n) .. s end
  return '\198' .. struct.pack('>I4', n) .. s
end

local function check(whole)
  local hex = redis.sha1hex(whole)
  return struct.pack('>I4I4', tonumber(hex:sub(1, 8), 16), tonumber(hex:sub(9, 16), 16))
end

local function field(name, value) return pack(name) .. bin(value) end

-- A record's fields stay as they are packed, name and value. (Lua hashes every string
-- that it makes, all of it: long ones are what takes the time here.)
local function dump(key, r)
  local parts, n = {key, r.handle .. '\159' .. bin(r.seed)
    .. pack(r.created, r.touched, r.idle, r.absolute), ''}, 0
  for _, packed in pairs(r.fields) do
    n = n + 1
    parts[n + 3] = packed
  end
  parts[3] = n < 16 and string.char(128 + n) or '\223' .. struct.pack('>I4', n)
  parts[n + 4] = pack(r.version, r.uses, r.principal, r.epoch, r.ownIdle, r.secure, r.address,
    r.userAgent) .. bin(r.token)
  parts[1] = '\1' .. check(table.concat(parts))
  return table.concat(parts)
end

-- Where a value that bin() wrote begins and ends; cmsgpack cannot read it.
local function extent(s, at)
  local kind = s:byte(at + 1)
  if kind == 196 then return at + 2, at + 2 + s:byte(at + 2) end
  if kind == 197 then return at + 3, at + 3 + struct.unpack('>I2', s, at + 2) end
  if kind == 198 then return at + 5, at + 5 + struct.unpack('>I4', s, at + 2) end
  error('not bytes')
end

local function content(s)
  local some = cmsgpack.unpack_limit
  local r, fields, n, name = {handle = s:sub(1, 16)}, {}, nil, nil
  local from, at = extent(s, 17)
  r.seed = s:sub(from + 1, at)
  at, r.created, r.touched, r.idle, r.absolute = some(s, 4, at)
  n = s:byte(at + 1)
  if n == 223 then n, at = struct.unpack('>I4', s, at + 2), at + 5 else n, at = n - 128, at + 1 end
  for _ = 1, n do
    local start = at
    at, name = some(s, 1, at)
    from, at = extent(s, at)
    fields[name] = s:sub(start + 1, at)
  end
  r.fields = fields
  at, r.version, r.uses, r.principal, r.epoch, r.ownIdle, r.secure, r.address, r.userAgent =
    some(s, 8, at)
  from, at = extent(s, at)
  r.token = s:sub(from + 1, at)
  return r
end

-- What is under a key: 'gone', 'live', 'moving', 'awaited' or 'sealed', and its table.
local function look(key)
  local value = redis.pcall('GET', base .. 's:' .. key)
  if not value then return 'gone' end
  if type(value) == 'table' then
    if value.err:find('WRONGTYPE', 1, true) then return 'sealed' end
    error(value)
  end
  local format, rest, ok, r = value:byte(1), value:sub(10), false, nil
  if format == 1 and check(key .. rest) == value:sub(2, 9) then
    ok, r = pcall(content, rest)
  elseif format == 0 then
    ok, r = pcall(unpack, value:sub(2))
    ok = ok and type(r) == 'table' and (r.to or r.from) and r.token
  elseif format and format > 1 then
    return 'sealed'
  end
  if not ok then
    redis.call('RENAME', base .. 's:' .. key, base .. 'q:' .. key)
    redis.call('ZREM', base .. 'due', key)
    redis.call('ZREM', base .. 'keys', key)
    aside[#aside + 1] = key
    return 'gone'
  end
  r.raw = value
  return format == 1 and 'live' or r.to and 'moving' or 'awaited', r
end

local function deadline(r)
  local first = r.idle and r.touched + r.idle or math.huge
  if r.absolute and r.created + r.absolute < first then first = r.created + r.absolute end
  return first
end

local function number(n) return string.format('%.17g', n) end
"""

# ARGV[2]: the channel for hints. ARGV[3]: '1' if the indexes are in this bucket.
_ENDING: Final = r"""
local told, stale, wish = {}, {}, nil
local month = 30 * 86400

local function keep(r, key, reason, ended)
  if wish == nil then wish = tonumber(redis.call('GET', base .. 'wish') or '') or 0 end
  if wish <= now then return end
  local value = pack({reason, ended, 0, '', key, dump(key, r)})
  if redis.call('HSETNX', base .. 'ends', r.handle, value) == 1 then
    redis.call('ZADD', base .. 'heard', number(ended), r.handle)
    redis.call('EXPIRE', base .. 'ends', month)
    redis.call('EXPIRE', base .. 'heard', month)
  end
end

-- The key is dead; what points to it can go: here, or wherever it is (by the client).
local function drop(key, principal, handle)
  redis.call('ZREM', base .. 'due', key)
  redis.call('ZREM', base .. 'keys', key)
  told[#told + 1] = key
  if ARGV[3] == '1' then
    if principal then redis.call('ZREM', base .. 'p:' .. principal, key) end
    if handle then redis.call('HDEL', base .. 'handles', handle) end
  else
    stale[#stale + 1] = key
    stale[#stale + 1] = principal or ''
    stale[#stale + 1] = handle or ''
  end
end

local function tell()
  if #told > 0 then redis.pcall('PUBLISH', ARGV[2], table.concat(told)) end
end
"""

_COMMIT: Final = r"""
local function born(c)
  local b = c.birth
  local at = now - b.ago
  return {handle = b.handle, seed = b.seed, created = at, touched = at, absolute = b.absolute,
    fields = {}, version = 0, uses = 0, epoch = b.epoch, ownIdle = false, secure = b.secure,
    address = b.address, userAgent = b.userAgent}
end

local function change(r, c)
  for _, name in ipairs(c.remove or {}) do r.fields[name] = nil end
  for name, value in pairs(c.set or {}) do r.fields[name] = field(name, value) end
  if c.usedAgo and now - c.usedAgo > r.touched then r.touched = now - c.usedAgo end
  if c.idle ~= nil then r.idle = c.idle or nil end
  if c.ownIdle ~= nil then r.ownIdle = c.ownIdle end
  if c.principal ~= nil then r.principal = c.principal or nil end
  if c.login then r.epoch = r.epoch + 1 end
  r.uses = r.uses + (c.uses or 0)
  r.version = r.version + 1
  r.token = c.token
end

-- twsessions.core.delta.apply and what comes with it; the record, or why not:
-- G one, C onflict, I d collision.
local function step(c)
  local key, to = c.key, c.to or c.key
  local moves = to ~= key
  local there = 'gone'
  if moves and not c.away then
    local other
    there, other = look(to)
    if there == 'live' and other.token == c.token then return other.raw end
  end
  local state, r = look(key)
  if state == 'moving' and r.token == c.token then return r.record end
  if state == 'live' and r.token == c.token then return r.raw end
  local first = math.huge
  if c.birth then
    if state ~= 'gone' then return 'I' end
    r = born(c)
  else
    if state == 'live' then first = deadline(r) end
    if state ~= 'live' or now >= first then return 'G' end
  end
  for name, value in pairs(c.expect or {}) do
    if (r.fields[name] or false) ~= (value and field(name, value)) then return 'C' end
  end
  local before = r.principal
  change(r, c)
  if there ~= 'gone' then return 'I' end
  local value = dump(to, r)
  if c.stop then
    keep(r, to, c.stop, now)
    if not c.birth then
      redis.call('DEL', base .. 's:' .. key)
      drop(key, before, r.handle)
    end
    return value
  end
  if c.away then
    local parted = '\0' .. pack({to = to, token = c.token, record = value})
    redis.call('SET', base .. 's:' .. key, parted)
    -- Nobody else leads to it as long as there is no hint of the new key.
    drop(key, before ~= r.principal and before, nil)
    redis.call('ZADD', base .. 'due', number(now + 5), key)
    return value
  end
  redis.call('SET', base .. 's:' .. to, value)
  if moves and not c.birth then
    redis.call('DEL', base .. 's:' .. key)
    drop(key, before, nil)
  end
  local fresh = moves or c.birth
  local last = deadline(r)
  if fresh then redis.call('ZADD', base .. 'keys', 0, to) end
  -- Moved forward only, and found alive by the sweep: not every use moves it.
  if last < math.huge and (fresh or last < first) then
    redis.call('ZADD', base .. 'due', number(last), to)
  end
  if ARGV[3] == '1' then
    if fresh then redis.call('HSET', base .. 'handles', r.handle, to) end
    if before and before ~= r.principal then
      redis.call('ZREM', base .. 'p:' .. before, key)
    end
    if r.principal and (fresh or before ~= r.principal) then
      redis.call('ZADD', base .. 'p:' .. r.principal, stamp, to)
    end
  end
  return value
end

local reply = {}
for n = 4, #ARGV do
  local ok, outcome = pcall(step, unpack(ARGV[n]))
  if not ok then outcome = 'F' .. (type(outcome) == 'table' and outcome.err or outcome) end
  reply[n] = outcome
end
tell()
reply[1], reply[2], reply[3] = stamp, table.concat(aside), stale
return reply
"""

# ARGV[4]: how many to end at the most. A use moves a deadline and not the key's
# place in `due`: those keys are put where they belong, and nothing is ended that
# falls due after one of them.
_SWEEP: Final = r"""
local limit = tonumber(ARGV[4])
local ended, between, found, bar = 0, {}, {}, math.huge
local due = redis.call('ZRANGEBYSCORE', base .. 'due', '-inf', stamp, 'WITHSCORES',
  'LIMIT', 0, math.max(limit, 32))
for n = 1, #due, 2 do
  local key, queued = due[n], tonumber(due[n + 1])
  local state, r = look(key)
  if state == 'live' then
    local last = deadline(r)
    if last <= queued then
      found[#found + 1] = {key, r, last}
    elseif last < math.huge then
      redis.call('ZADD', base .. 'due', number(last), key)
      bar = math.min(bar, last)
    else
      redis.call('ZREM', base .. 'due', key)
    end
  elseif state == 'sealed' then
    redis.call('ZADD', base .. 'due', number(now + 3600), key)
  elseif state == 'gone' then
    redis.call('ZREM', base .. 'due', key)
    redis.call('ZREM', base .. 'keys', key)
  else
    redis.call('ZADD', base .. 'due', number(now + 5), key)
    between[#between + 1] = key
    between[#between + 1] = r.raw
  end
end
for _, one in ipairs(found) do
  local key, r, last = one[1], one[2], one[3]
  if ended == limit or last > bar then break end
  local idle = r.idle and (not r.absolute or r.touched + r.idle < r.created + r.absolute)
  keep(r, key, idle and 'idle' or 'absolute', last)
  redis.call('DEL', base .. 's:' .. key)
  drop(key, r.principal, r.handle)
  ended = ended + 1
end
tell()
local following = redis.call('ZRANGE', base .. 'due', 0, 0, 'WITHSCORES')
return {stamp, table.concat(aside), stale, ended, #due / 2, between, following[2] or ''}
"""

_CLAIM: Final = r"""
local reply = {stamp}
local due = redis.call('ZRANGEBYSCORE', base .. 'heard', '-inf', stamp, 'LIMIT', 0, ARGV[2])
for _, id in ipairs(due) do
  local value = redis.call('HGET', base .. 'ends', id)
  local ok, e = pcall(cmsgpack.unpack, value or '')
  if ok and type(e) == 'table' and #e == 6 then
    e[3], e[4] = e[3] + 1, ARGV[4]
    value = cmsgpack.pack(e)
    redis.call('HSET', base .. 'ends', id, value)
    redis.call('ZADD', base .. 'heard', string.format('%.17g', now + ARGV[3]), id)
    reply[#reply + 1] = id
    reply[#reply + 1] = value
  else
    redis.call('ZREM', base .. 'heard', id)
  end
end
return reply
"""

_SETTLE: Final = r"""
local reply = {}
for n = 2, #ARGV do
  local v = cmsgpack.unpack(ARGV[n])
  local value = redis.call('HGET', base .. 'ends', v.id)
  local ok, e = pcall(cmsgpack.unpack, value or '')
  local held = ok and type(e) == 'table' and e[4] == v.claim and v.claim ~= ''
  reply[n - 1] = held and 1 or 0
  if held and not v.dead and not v.retryIn then
    redis.call('HDEL', base .. 'ends', v.id)
    redis.call('ZREM', base .. 'heard', v.id)
  elseif held then
    e[4] = ''
    redis.call('HSET', base .. 'ends', v.id, cmsgpack.pack(e))
    if v.dead then
      redis.call('ZREM', base .. 'heard', v.id)
    else
      redis.call('ZADD', base .. 'heard', string.format('%.17g', now + v.retryIn), v.id)
    end
  end
end
return reply
"""

_LISTEN: Final = r"""
local month = 30 * 86400
redis.call('SET', base .. 'wish', string.format('%.17g', now + month))
redis.call('EXPIRE', base .. 'ends', month)
redis.call('EXPIRE', base .. 'heard', month)
return 1
"""

# The server forgets a lease a minute after it is over; what counts is `until`.
_ACQUIRE: Final = r"""
local name, lease = base .. 'l:' .. ARGV[2], tonumber(ARGV[4])
local ok, over, holder = pcall(cmsgpack.unpack, redis.call('GET', name) or '')
if ok and holder and holder ~= ARGV[3] and now < over then return 0 end
local value = cmsgpack.pack(now + lease, ARGV[3])
redis.call('SET', name, value, 'PX', string.format('%.0f', (lease + 60) * 1000))
return 1
"""

_RELEASE: Final = r"""
local name = base .. 'l:' .. ARGV[2]
local ok, _, holder = pcall(cmsgpack.unpack, redis.call('GET', name) or '')
if ok and holder == ARGV[3] then redis.call('DEL', name) end
return 1
"""

_ASIDE: Final = r"""
look(ARGV[2])
return {stamp, table.concat(aside)}
"""

# The four steps of a rotation from one bucket to another: RESERVE the new key,
# COMMIT (with `away`) under the old one, ARRIVE at the new, FORGET the old.
_RESERVE: Final = r"""
local key, token, from = ARGV[2], ARGV[3], ARGV[4]
local state, r = look(key)
if state == 'live' and r.token == token then return {stamp, r.raw} end
if state == 'awaited' and r.token == token then return {stamp, 'W'} end
if state ~= 'gone' then return {stamp, 'I'} end
redis.call('SET', base .. 's:' .. key, '\0' .. pack({from = from, token = token}))
redis.call('ZADD', base .. 'due', number(now + 3600), key)
return {stamp, 'W'}
"""

_ARRIVE: Final = r"""
local key, token, value = ARGV[2], ARGV[3], ARGV[4]
local state, r = look(key)
if state == 'live' and r.token == token then return {stamp, r.raw} end
if state ~= 'awaited' or r.token ~= token then return {stamp, 'G'} end
redis.call('SET', base .. 's:' .. key, value)
state, r = look(key)
redis.call('ZADD', base .. 'keys', 0, key)
if deadline(r) < math.huge then
  redis.call('ZADD', base .. 'due', number(deadline(r)), key)
else
  redis.call('ZREM', base .. 'due', key)
end
return {stamp, value}
"""

_FORGET: Final = r"""
local key, token = ARGV[2], ARGV[3]
local state, r = look(key)
if state == 'live' and r.token == token then return {stamp, r.raw} end
if (state == 'moving' or state == 'awaited') and r.token == token then
  redis.call('DEL', base .. 's:' .. key)
  redis.call('ZREM', base .. 'due', key)
end
return {stamp, 'G'}
"""

# Indexes in buckets of their own only hint, and a hint comes before what it is of.
# So one that leads nowhere is taken away only when it is old. ARGV[4], if there is
# one: the key that the session had before.
_HINT: Final = r"""
redis.call('ZADD', base .. 'p:' .. ARGV[2], stamp, ARGV[3])
if ARGV[4] then redis.call('ZREM', base .. 'p:' .. ARGV[2], ARGV[4]) end
return 1
"""

_UNHINT: Final = r"""
for n = 3, #ARGV do
  local added = redis.call('ZSCORE', base .. 'p:' .. ARGV[2], ARGV[n])
  if added and tonumber(added) < now - 3600 then
    redis.call('ZREM', base .. 'p:' .. ARGV[2], ARGV[n])
  end
end
return 1
"""


class Script:
    """
    A script as the server knows it.

    @ivar text: its Lua.
    """

    def __init__(self, *parts: str) -> None:
        self.text = "".join(parts).encode("ascii")
        self._sha = sha1(self.text, usedforsecurity=False).hexdigest().encode("ascii")

    def call(self, keys: Sequence[bytes], args: Sequence[bytes]) -> bytes:
        """
        The command to run it, if the server has it already.
        """
        return command(b"EVALSHA", self._sha, len(keys), *keys, *args)

    def fullCall(self, keys: Sequence[bytes], args: Sequence[bytes]) -> bytes:
        """
        The command to run it in any case.
        """
        return command(b"EVAL", self.text, len(keys), *keys, *args)


COMMIT: Final = Script(_CLOCK, _RECORD, _ENDING, _COMMIT)
SWEEP: Final = Script(_CLOCK, _RECORD, _ENDING, _SWEEP)
CLAIM: Final = Script(_CLOCK, _CLAIM)
SETTLE: Final = Script(_CLOCK, _SETTLE)
LISTEN: Final = Script(_CLOCK, _LISTEN)
ACQUIRE: Final = Script(_CLOCK, _ACQUIRE)
RELEASE: Final = Script(_CLOCK, _RELEASE)
ASIDE: Final = Script(_CLOCK, _RECORD, _ASIDE)
RESERVE: Final = Script(_CLOCK, _RECORD, _RESERVE)
ARRIVE: Final = Script(_CLOCK, _RECORD, _ARRIVE)
FORGET: Final = Script(_CLOCK, _RECORD, _FORGET)
HINT: Final = Script(_CLOCK, _HINT)
UNHINT: Final = Script(_CLOCK, _UNHINT)

SCRIPTS: Final = (
    COMMIT, SWEEP, CLAIM, SETTLE, LISTEN, ACQUIRE, RELEASE, ASIDE, RESERVE, ARRIVE, FORGET,
    HINT, UNHINT,
)  # fmt: skip
"""All of them; a new connection makes the server know them."""
