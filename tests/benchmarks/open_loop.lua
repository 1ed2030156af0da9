-- An open loop for wrk: one request every 1 / rate seconds, however long the answers take.
-- Arguments after `--`: the file (requests separated by NUL), the number of the first one, the rate, the seconds.
--
-- Latency counts from the moment at which a request was due. The server echoes X-Request-Id, which tells which
-- request an answer belongs to; answers of a server that does not are taken to come in the order of the requests.
-- A refusal that does not echo it is an answer of unknown latency to one of those that get no other.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } open_loop_time;
  int clock_gettime(int clock, open_loop_time *time);
]]

local MONOTONIC = 1
local HEAD_START_S = 0.2
local GRACE_S = 1.0
local DEADLINE_MS = 80

local threads = {}
local heads, tails, position = {}, {}, 0
local clock = ffi.new("open_loop_time")

-- Global, because only globals of a thread can be read at the end.
begin_s, rate, total, sent, claimed = 0, 0, 0, 0, 0
latencies_ms, pending_due, statuses, levels, models = {}, {}, {}, {}, {}
cached, oldest, refused, stopped_s, cpu_s = 0, 0, 0, 0, 0

local function now_s()
  ffi.C.clock_gettime(MONOTONIC, clock)
  return tonumber(clock.seconds) + tonumber(clock.nanoseconds) * 1e-9
end

function setup(thread)
  threads[#threads + 1] = thread
end

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  for request in file:read("*a"):gmatch("[^%z]+") do
    local line_end = request:find("\r\n", 1, true)
    heads[#heads + 1] = request:sub(1, line_end + 1) .. "X-Request-Id: "
    tails[#tails + 1] = request:sub(line_end)
  end
  file:close()
  position = tonumber(arguments[2]) % #heads
  rate = tonumber(arguments[3])
  total = math.floor(rate * tonumber(arguments[4]))
  begin_s = now_s() + HEAD_START_S
end

-- Milliseconds until the next request that no connection has claimed yet is due.
function delay()
  if claimed >= total then return 3600000 end
  local due_s = begin_s + claimed / rate
  claimed = claimed + 1
  return math.max(0, math.ceil((due_s - now_s()) * 1000))
end

function request()
  -- Not counted: wrk asks for one before it begins, and a connection made anew sends one without a delay.
  if claimed == 0 or sent >= total then return heads[1] .. 0 .. tails[1] end
  sent = sent + 1
  pending_due[sent] = math.min(begin_s + (sent - 1) / rate, now_s())
  position = position % #heads + 1
  return heads[position] .. sent .. tails[position]
end

local function count(counts, key)
  if key then counts[key] = (counts[key] or 0) + 1 end
end

-- What a plain search finds is looked at: to match a pattern at each place of an answer takes ten times as long.
local function after(body, name, pattern)
  local _, last = body:find(name, 1, true)
  return last and body:match(pattern, last + 1)
end

local function answered(number)
  if number then return number end
  repeat oldest = oldest + 1 until pending_due[oldest] or oldest > sent
  return oldest
end

function response(status, headers, body)
  local number = tonumber(headers["X-Request-Id"])
  if status >= 400 and not number and next(pending_due) then
    refused = refused + 1
    count(statuses, tostring(status))
    return
  end
  number = answered(number)
  local due_s = pending_due[number]
  if not due_s then return end
  pending_due[number] = nil
  stopped_s = now_s()
  cpu_s = os.clock()
  latencies_ms[#latencies_ms + 1] = (stopped_s - due_s) * 1000
  count(statuses, tostring(status))
  count(levels, after(body, '"degradation_level":', '^%d'))
  count(models, after(body, '"model_version":"', '^[^"]*'))
  if body:find('"cached":true', 1, true) then cached = cached + 1 end
end

local function percentile(ascending, percent)
  if #ascending == 0 then return "NaN" end
  return string.format("%.4f", ascending[math.max(math.ceil(#ascending * percent / 100), 1)])
end

local function object(counts)
  local parts = {}
  for key, value in pairs(counts) do parts[#parts + 1] = string.format('"%s": %s', key, value) end
  return "{" .. table.concat(parts, ", ") .. "}"
end

function done(summary)
  local thread = threads[1]
  local ascending, unanswered, under_way = thread:get("latencies_ms"), 0, 0
  local last_s = thread:get("stopped_s")
  -- What was under way when the load was stopped before its end has not failed.
  local was_stopped = thread:get("sent") < thread:get("total")
  for _, due_s in pairs(thread:get("pending_due")) do
    if not was_stopped or due_s < last_s - GRACE_S then
      unanswered = unanswered + 1
    else
      under_way = under_way + 1
    end
  end
  local refused_under_way = math.min(thread:get("refused"), under_way)
  under_way = under_way - refused_under_way
  unanswered = math.max(unanswered - thread:get("refused") + refused_under_way, 0)
  local over_deadline = 0
  for _, latency_ms in ipairs(ascending) do
    if latency_ms > DEADLINE_MS then over_deadline = over_deadline + 1 end
  end
  table.sort(ascending)
  local percentiles = {}
  for _, percent in ipairs({50, 90, 99, 99.9}) do percentiles["p" .. percent] = percentile(ascending, percent) end
  io.write("RESULT ", object({
    due = thread:get("sent") - under_way,
    answers = #ascending + thread:get("refused"),
    errors = unanswered + summary.errors.connect,
    seconds = string.format("%.6f", last_s - thread:get("begin_s")),
    over_deadline = over_deadline,
    cpu_s = string.format("%.6f", thread:get("cpu_s")),
    latency_ms = object(percentiles),
    statuses = object(thread:get("statuses")),
    levels = object(thread:get("levels")),
    models = object(thread:get("models")),
    cached = thread:get("cached"),
  }), "\n")
end
