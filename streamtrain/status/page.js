"use strict";
// Whatever comes from the daemon becomes text, never markup: names and log lines are other people's.
const POLL_MS = 2000, TIMEOUT_MS = 8000;
const at = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };

const ABSENT = "\u2013";
const absent = (value) => value === null || value === undefined;
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const count = (value) => absent(value) ? ABSENT : (Math.abs(value) < 1e6 ? whole : short).format(value);
const rate = (value) => absent(value) ? ABSENT : (value < 10 ? value.toFixed(2) : count(value)) + " /s";
const share = (value) => absent(value) ? ABSENT : Math.round(100 * Math.min(1, value)) + " %";
const measure = (value) => absent(value) ? ABSENT : value.toFixed(4);
const bytes = (value) => {
  if (absent(value)) return ABSENT;
  const unit = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(value, 1)) / 10)));
  return (value / 1024 ** unit).toFixed(unit ? 1 : 0) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][unit];
};
const lasted = (seconds) => {
  if (absent(seconds)) return ABSENT;
  const s = Math.max(0, seconds);
  if (s < 120) return s.toFixed(s < 10 ? 1 : 0) + " s";
  if (s < 7200) return Math.round(s / 60) + " min";
  return s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";
};
const ago = (ms, now) => absent(ms) ? ABSENT : lasted((now - ms) / 1000) + " ago";

function showHead(state) {
  document.title = `${state.model}: ${state.phase} - streamtrain`;
  say(at("model"), state.model);
  say(at("phase"), state.phase);
  at("phase").className = state.ready ? "ready" : "";
  const started = absent(state.started_at_ms) ? "" : `, up for ${lasted((state.now_ms - state.started_at_ms) / 1000)}`;
  say(at("about"), `streamtrain ${state.version}${started}`);
  at("attention").hidden = state.notices.length === 0;
  replace("notices", state.notices.map((text) => make("li", text)));
}

// Nothing is replaced that says the same already: a screen reader and a selection stay where they are.
function replace(id, elements) {
  const target = at(id), holder = make("div");
  holder.append(...elements);
  if (target.innerHTML !== holder.innerHTML) target.replaceChildren(...elements);
}

function showPath(state) {
  const stages = state.path.map((stage) => {
    // To read is mostly to wait for records, and counts as work: there is no stage before it.
    const item = make("li"), meter = make("meter"), doing = stage.stage === "read" ? "at the source" : "at work";
    const waits = ["input", "room"].filter((on) => !absent(stage[on])).map((on) => `${share(stage[on])} for ${on}`);
    meter.max = 1;
    meter.value = Math.min(1, stage.busy ?? 0);
    meter.setAttribute("aria-label", `${stage.stage} ${doing}`);
    item.append(make("span", stage.stage, "name"), meter, make("span", `${share(stage.busy)} ${doing}`),
      make("br"), make("span", waits.length ? `waits ${waits.join(", ")}` : "", "small"));
    return item;
  });
  const log = make("li");
  log.append(make("span", "epoch log", "name"), make("span", `epoch ${count(state.figures.epoch)}`), make("br"),
    make("span", `durable ${ago(state.figures.committed_at_ms, state.now_ms)}`, "small"));
  replace("path", [...stages, log]);
  replace("views", state.views.map((view) => {
    const item = make("li"), behind = `${count(view.lag_epochs)} epochs behind`;
    item.append(make("span", `view ${view.view}`, "name"), make("span", `${behind}, ${lasted(view.lag_s)}`, "small"));
    return item;
  }));
}

function showFigures(state) {
  const now = state.figures, rows = [
    ["samples", rate(now.samples_per_s)], ["samples since the start", count(now.samples)],
    ["steps", rate(now.steps_per_s)], ["epochs", rate(now.epochs_per_s)], ["changed rows", rate(now.rows_per_s)],
    ["log", absent(now.log_bytes_per_s) ? ABSENT : bytes(now.log_bytes_per_s) + "/s"],
    ["lag", absent(now.lag_records) ? ABSENT : `${count(now.lag_records)} records`], ["lag in time", lasted(now.lag_s)],
    ["newest event", ago(now.watermark_ms, state.now_ms)], ["memory", bytes(now.memory_bytes)],
    ["processor", absent(now.cpu_cores) ? ABSENT : `${now.cpu_cores.toFixed(2)} cores`],
    ["disk left", bytes(now.disk_free_bytes)], ["dead letters", count(now.dead_letters)],
  ];
  if (state.phase === "standby") rows.unshift(["behind the owner", `${count(now.standby_lag_epochs)} epochs`]);
  for (const [reason, number] of Object.entries(state.bad_samples)) rows.push([`refused: ${reason}`, count(number)]);
  replace("figures", rows.map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    return pair;
  }));
}

function chart(name, times, values, format) {
  const figure = make("figure"), caption = make("figcaption");
  const known = values.map((value, i) => [times[i], value]).filter(([, value]) => !absent(value));
  const newest = known.length ? format(known[known.length - 1][1]) : ABSENT;
  caption.append(make("span", name), make("span", newest));
  const numbers = known.map(([, value]) => value), low = Math.min(...numbers), high = Math.max(...numbers);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const words = known.length ? `${newest} now, between ${format(low)} and ${format(high)} in ${lasted((times[times.length - 1] - times[0]) / 1000)}`
    : "no values yet";
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${name}: ${words}`);
  svg.setAttribute("viewBox", "0 0 300 60");
  svg.setAttribute("preserveAspectRatio", "none");
  const span = Math.max(1, times[times.length - 1] - times[0]), height = high - low || 1;
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", known.map(([time, value]) =>
    `${(300 * (time - times[0]) / span).toFixed(1)},${(56 - 52 * (high === low ? 0.5 : (value - low) / height)).toFixed(1)}`).join(" "));
  svg.append(line);
  figure.append(caption, svg, make("span", known.length ? `${format(low)} to ${format(high)}` : "no values yet", "small"));
  return figure;
}

function showCharts(history) {
  const times = history.at_ms, charts = [chart("samples", times, history.samples_per_s, rate)];
  // Files have no lag that is known.
  if (!history.lag_records.every(absent)) charts.push(chart("lag in records", times, history.lag_records, count));
  for (const label of Object.keys(history.auc)) {
    charts.push(chart(`AUC of ${label}, window`, times, history.auc[label], measure));
    charts.push(chart(`calibration of ${label}, window`, times, history.calibration[label], measure));
  }
  replace("charts", charts);
}

function table(id, caption, columns, rows) {
  const made = make("table"), head = made.createTHead().insertRow(), body = made.createTBody();
  made.prepend(make("caption", caption));
  for (const [title, value] of columns) {
    const cell = make("th", title, rows.length && /^[a-z]/.test(value(rows[0])) ? "text" : "");
    cell.scope = "col";
    head.append(cell);
  }
  for (const row of rows) {
    const line = body.insertRow();
    columns.forEach(([, value], i) => {
      const shown = value(row), cell = make(i ? "td" : "th", shown, /^[a-z]/.test(shown) ? "text" : "");
      if (!i) cell.scope = "row";
      line.append(cell);
    });
  }
  replace(id, rows.length ? [made] : [make("p", "Nothing to show yet.", "small")]);
}

function showTables(state) {
  const whatOf = { window: "the last full window", total: "since the model's birth" };
  table("quality", "Each sample is scored before it is learned from; by label", [
    ["label", (row) => row.label], ["over", (row) => whatOf[row.over]], ["AUC", (row) => measure(row.auc)],
    ["log-loss", (row) => measure(row.log_loss)], ["normalized entropy", (row) => measure(row.normalized_entropy)],
    ["calibration", (row) => measure(row.calibration)]], state.quality);
  const events = new Set(state.tables.shown.flatMap((row) => Object.keys(row.events)));
  const most = (all, what) => all.shown.length < all.known ? `${all.shown.length} of ${all.known}, ${what}` : `${all.known} in all`;
  table("tables", most(state.tables, "largest first"), [
    ["table", (row) => row.table], ["rows in memory", (row) => count(row.rows)], ["memory", (row) => bytes(row.bytes)],
    ...[...events].sort().map((event) => [event, (row) => count(row.events[event])])], state.tables.shown);
  at("lag").hidden = state.partitions.known === 0;
  table("partitions", most(state.partitions, "furthest behind first"), [
    ["partition", (row) => row.partition], ["records behind", (row) => count(row.lag_records)]], state.partitions.shown);
}

function showProblems(state) {
  const lines = state.problems.map((problem) => {
    const item = make("li"), when = make("time", new Date(problem.at_ms).toISOString().slice(0, 19) + "Z", "small");
    when.dateTime = new Date(problem.at_ms).toISOString();
    const repeats = problem.times > 1 ? ` (${count(problem.times)} times)` : "";
    item.append(when, " ", make("span", problem.level, problem.level), repeats + " ", make("span", problem.message));
    return item;
  });
  replace("problems", lines.length ? lines : [make("li", "None since this process began.")]);
  say(at("configuration"), JSON.stringify(state.configuration, null, 2));
}

let answered = null, paused = false, asking = false;

async function update() {
  if (asking) return;
  asking = true;
  try {
    // A browser that was asked for the token at "/" sends it here too.
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const state = await answer.json();
    for (const show of [showHead, showPath, showFigures, showTables, showProblems]) show(state);
    showCharts(state.history);
    at("content").hidden = false;
    say(at("alert"), "");
    answered = new Date();
  } catch (error) {
    // The same words at each look: a screen reader says them once.
    const old = answered ? `; what is shown is from ${answered.toLocaleTimeString()}` : "";
    say(at("alert"), `The daemon does not answer (${error.message})${old}.`);
  } finally {
    asking = false;
  }
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) update();
});
// A page in the background asks nothing.
setInterval(() => { if (!paused && !document.hidden) update(); }, POLL_MS);
document.addEventListener("visibilitychange", () => { if (!paused && !document.hidden) update(); });
update();
