"use strict";
// Fills the page from /stats every two seconds. Everything is written as text, never as HTML: an
// error that the target answered is shown here.

const PERIOD_MS = 2000;
const ANSWER_MS = 5000;
const RATE_SAMPLES = 6; // the rate is that of the last ten seconds

const byId = (id) => document.getElementById(id);
const part = (figures, path) => path.split(".").reduce((value, key) => value?.[key], figures);

function written(value, unit) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (unit !== "seconds") return value.toLocaleString("en");
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function showPairs(list, pairs) {
  list.replaceChildren(
    ...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", written(value))]),
  );
}

// What a person should know, the worst first: [how bad, what, the alert whose section in
// docs/how-to/runbook.md says what to do].
function verdicts(figures, live) {
  const { breaker, fallback, target } = figures;
  const letters = figures.open_dead_letters;
  const open = breaker.state !== "closed";
  const refused = target.state === "refuses_us";
  const all = [
    [!live, "bad", "Work is waiting and nothing moves: the worker ends itself, to be started again.", "OrderRelayIntakeStandsStill"],
    [!figures.kafka_up, "bad", "Kafka does not answer this worker.", "OrderRelayKafkaUnreachable"],
    [figures.near_deletion_records > 0, "bad", `Events that Kafka deletes soon, and that are not delivered: ${written(figures.near_deletion_records)}.`, "OrderRelayNearDeletion"],
    [figures.deleted_records > 0, "bad", `Events lost since this worker's start: Kafka deleted them before they were delivered: ${written(figures.deleted_records)}.`, "OrderRelayRecordsDeleted"],
    [open && !refused, "bad", "The target fails: events wait in Kafka, none is given up.", "OrderRelayBreakerOpen"],
    [open && refused, "bad", "The target refuses our token, URL or certificate: events wait in Kafka, none is given up.", "OrderRelayTargetRefusesUs"],
    [!fallback.database_up, "bad", "The fallback table's database takes no rows.", "OrderRelayFallbackDatabaseDown"],
    [fallback.files_replaced > 0, "bad", "The fallback table's file was deleted or replaced while it was open: its rows may be lost.", "OrderRelayFallbackFileReplaced"],
    [fallback.failed > 0, "bad", `Rows of the fallback table that wait for a person: ${written(fallback.failed)}.`, "OrderRelayFailedRows"],
    [letters.total > 0, "bad", `Dead letters that wait for a person: ${written(letters.total)}, the oldest for ${written(letters.oldest_seconds, "seconds")}.`, "OrderRelayDeadLetters"],
    [letters.deleted > 0, "bad", `Open dead letters that left their topic since this worker's start: ${written(letters.deleted)}.`, "OrderRelayOpenDeadLettersDeleted"],
    [figures.paused, "warn", "Paused: nothing is sent until a person resumes it on the page Consumers.", ""],
    [figures.transaction_open_seconds > 300, "warn", `An open transaction of a producer has held back events for ${written(figures.transaction_open_seconds, "seconds")}.`, "OrderRelayTransactionOpen"],
    [figures.partitions.length === 0, "warn", "No partitions: the worker starts, the group rebalances, or there are more workers than partitions.", "OrderRelayPartitionsUnassigned"],
    [figures.deliveries_table.recovering, "warn", "The table of orders is being read; deliveries begin after it.", "OrderRelayTableRecovering"],
    [target.state === "throttles", "warn", "The target throttles: events are sent at the rate that it bears.", "OrderRelayTargetThrottles"],
    [fallback.pending > 0, "warn", `Rows of the fallback table that wait for Kafka: ${written(fallback.pending)}.`, "OrderRelayPendingRowTooOld"],
    [target.state === "fails_for_some", "note", `The target fails on some events (${share(target.share_failed)} of the first attempts); they are tried again.`, "OrderRelayTargetFailsForMany"],
    [figures.published.failed > 0, "note", `Orders since this worker's start that neither Kafka nor the database took, as the caller was told: ${written(figures.published.failed)}.`, "OrderRelayPublishFailed"],
  ];
  const found = all.filter(([is]) => is).map(([, ...verdict]) => verdict);
  if (found.some(([level]) => level !== "note")) return found;
  return [["good", "Events are delivered; nothing here is at risk.", ""], ...found];
}

const share = (part) => `${(part * 100).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;

// The alert's name, as a link where RUNBOOK_URL says where the runbook is.
function runbookSection(alert) {
  const { runbook } = document.body.dataset;
  if (!runbook) return element("small", alert);
  const small = element("small", "");
  const link = element("a", alert);
  link.href = `${runbook}#${alert.toLowerCase()}`;
  small.append(link);
  return small;
}

let shownVerdicts = "";

function showVerdicts(found) {
  // Only what is new: a screen reader reads out whatever is put there.
  const text = JSON.stringify(found);
  if (text === shownVerdicts) return;
  shownVerdicts = text;
  byId("verdicts").replaceChildren(
    ...found.map(([level, text, alert]) => {
      const line = element("li", `${text} `, level);
      if (alert) line.append(runbookSection(alert));
      return line;
    }),
  );
}

const delivered = []; // [seconds, count], the newest last

function rate(figures) {
  delivered.push([Date.parse(figures.time) / 1000, figures.deliveries.delivered]);
  if (delivered.length > RATE_SAMPLES) delivered.shift();
  const [[since, before], [now, count]] = [delivered[0], delivered.at(-1)];
  if (count < before) delivered.splice(0, delivered.length - 1); // the worker was restarted
  return now > since && count >= before ? `${((count - before) / (now - since)).toFixed(1)}/s` : "";
}

function show(figures, live) {
  document.body.classList.remove("stale");
  for (const place of document.querySelectorAll("[data-figure]")) {
    place.textContent = written(part(figures, place.dataset.figure), place.dataset.unit);
  }
  byId("rate").textContent = rate(figures);
  const lags = figures.partitions.map(({ lag }) => lag);
  byId("lag").textContent = lags.includes(null) ? "–" : written(lags.reduce((sum, lag) => sum + lag, 0));
  byId("partitions").replaceChildren(
    ...figures.partitions.map(({ topic, partition, lag, committed, position }) => {
      const row = document.createElement("tr");
      row.append(element("th", `${topic} ${partition}`));
      row.append(...[lag, committed, position].map((value) => element("td", written(value))));
      return row;
    }),
  );
  showPairs(byId("dead-letters"), Object.entries(figures.dead_letters));
  showVerdicts(verdicts(figures, live));
  showTarget(figures.target.state, figures.breaker.state !== "closed" && !figures.paused);
}

function showTarget(state, open) {
  const target = byId("target");
  target.className = state;
  const form = byId("probe");
  if (form.hidden && open) byId("probe-answer").textContent = "";
  // The button goes, the keyboard's place in the page stays.
  if (!open && form.contains(document.activeElement)) target.focus();
  form.hidden = !open;
}

// What an answer of POST /probe means to the person who pressed the button.
function probeAnswer(status, error) {
  if (status === 202) return "The next probe goes at once.";
  if (status === 409) return "There is nothing to probe: the breaker is closed, and events are sent.";
  if (status === 401) return "This worker wants its API_TOKEN: type it in, and probe again.";
  return `No probe was sent: ${error ?? `the worker answered ${status}`}.`;
}

async function probe(event) {
  event.preventDefault();
  const token = byId("token").value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer = "";
  try {
    const response = await fetch(ofConsumer("/probe"), { method: "POST", headers, signal: AbortSignal.timeout(ANSWER_MS) });
    const body = await response.json().catch(() => ({}));
    answer = probeAnswer(response.status, body.error);
    if (response.status === 401) {
      byId("probe-token").hidden = false;
      byId("token").value = "";
      byId("token").focus();
    }
  } catch (error) {
    answer = `No probe was sent: this worker does not answer (${error.message}).`;
  }
  byId("probe-answer").textContent = answer;
}

// Of several consumers the page shows the one that its address names.
const consumer = new URLSearchParams(location.search).get("consumer");
const ofConsumer = (path) => (consumer ? `${path}?consumer=${encodeURIComponent(consumer)}` : path);

function showConsumers(names, shown) {
  const nav = byId("consumers");
  nav.hidden = names.length < 2;
  if (nav.childElementCount === names.length) return;
  nav.replaceChildren(...names.map((name) => {
    const link = document.createElement("a");
    link.href = `?consumer=${encodeURIComponent(name)}`;
    link.textContent = name;
    if (name === shown) link.setAttribute("aria-current", "page");
    return link;
  }));
}

const ask = (path) => fetch(ofConsumer(path), { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });

async function refresh() {
  try {
    const [stats, live] = await Promise.all([ask("/stats"), ask("/health/live")]);
    const answer = await stats.json();
    if (stats.ok) {
      showConsumers(answer.consumers, answer.consumer);
      show(answer, live.ok);
    } else { // a link to a consumer that this worker does not run
      document.body.classList.add("stale");
      showVerdicts([["bad", `There are no figures: ${answer.error}.`, ""]]);
    }
  } catch (error) {
    document.body.classList.add("stale");
    showVerdicts([["bad", `This worker does not answer (${error.message}); the figures are old.`, "OrderRelayWorkerNotScraped"]]);
  }
  setTimeout(refresh, PERIOD_MS);
}

async function lookUp(event) {
  event.preventDefault();
  const id = new FormData(byId("order")).get("id").trim();
  let answer = "";
  let fields = [];
  try {
    const response = await ask(`/orders/${encodeURIComponent(id)}`);
    const body = await response.json();
    // Its id is left out: one of 64 bits is more than a number of JavaScript holds.
    fields = Object.entries(body).filter(([name]) => name !== "orderId" && name !== "error");
    answer = body.error ?? `Order ${id}:`;
  } catch (error) {
    answer = `This worker does not answer (${error.message}).`;
  }
  byId("order-answer").textContent = answer;
  showPairs(byId("order-fields"), fields);
}

byId("order").addEventListener("submit", lookUp);
byId("probe").addEventListener("submit", probe);
refresh();
