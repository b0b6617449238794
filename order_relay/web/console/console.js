"use strict";
// Refreshes a page in place, and sends what a person wants to change: first a dry run, whose result
// the dialog shows, then the change itself. Everything is written as text, never as HTML; only pages
// of this worker, which are rendered there, are put in place as they are.

const ANSWER_MS = 15000;
const JOB_MS = 1000;
const byId = (id) => document.getElementById(id);
const content = () => byId("content");

// --- refreshing ---------------------------------------------------------------------------------

const focusable = () => [...content().querySelectorAll("a, button, summary, [tabindex]")];
const scrollable = () => [...content().querySelectorAll(".scroll, section")];

// Not while a person types, selects or reads a dialog.
function busy() {
  const focused = document.activeElement;
  return (
    document.hidden || byId("confirm").open || content().querySelector("input[type=checkbox]:checked") !== null ||
    (content().contains(focused) && ["INPUT", "SELECT"].includes(focused.tagName))
  );
}

async function refresh() {
  if (busy()) return;
  let fresh;
  try {
    const response = await fetch(location.href, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
    fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("content");
  } catch {
    fresh = null;
  }
  byId("stale").hidden = fresh !== null;
  document.body.classList.toggle("stale", fresh === null);
  if (fresh === null || busy()) return;
  const opened = [...content().querySelectorAll("details")].map((one) => one.open);
  fresh.querySelectorAll("details").forEach((one, index) => { one.open = opened[index] ?? false; });
  if (fresh.isEqualNode(content())) return;
  const place = focusable().indexOf(document.activeElement);
  const scrolled = scrollable().map((one) => one.scrollLeft);
  content().replaceChildren(...fresh.childNodes);
  focusable()[place]?.focus({ preventScroll: true }); // the keyboard's place in the page stays
  scrollable().forEach((one, index) => { one.scrollLeft = scrolled[index] ?? 0; });
}

// --- changing -----------------------------------------------------------------------------------

function selected() {
  return [...content().querySelectorAll("input[name=position]:checked")].map((one) => one.value);
}

// What a button is about: selected or given positions, or all that the page's filter leaves.
function request(button) {
  const { consumer, filter, positions } = button.closest("[data-change]").dataset;
  const rate = button.closest("[data-change]").querySelector("input[name=rate]")?.value.trim();
  return {
    ...(consumer ? { consumer } : {}),
    ...("selected" in button.dataset ? { positions: selected() } : positions ? { positions: JSON.parse(positions) } : filter ? { filter: JSON.parse(filter) } : {}),
    ...(rate ? { rate: Number(rate) || rate } : {}), // the worker refuses any other text
  };
}

async function send(path, body, token) {
  const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  try {
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal: AbortSignal.timeout(ANSWER_MS) });
    const answer = await response.json().catch(() => ({ error: `the worker answered ${response.status}` }));
    return { ok: response.ok, ...answer };
  } catch (error) {
    return { ok: false, error: `the worker does not answer (${error.message})` };
  }
}

let asked = null; // the path and body that the dialog is about

function ask(button) {
  const place = button.closest("[data-change]");
  asked = { path: `${place.dataset.change}/${button.dataset.action}`, body: request(button) };
  const dialog = byId("confirm");
  const form = dialog.querySelector("form");
  byId("confirm-title").textContent = button.textContent;
  byId("confirm-text").textContent = "";
  byId("confirm-answer").textContent = "";
  form.elements.actor.value = sessionStorage.getItem("actor") ?? "";
  form.elements.token.value = sessionStorage.getItem("token") ?? "";
  form.elements.reason.value = "";
  form.elements.reason.required = button.dataset.action === "discard" || button.dataset.action === "pause";
  dialog.showModal();
  preview();
}

let previews = 0; // an answer is shown only if nothing was asked after it

async function preview() {
  const form = byId("confirm").querySelector("form");
  const mine = ++previews;
  const answer = await send(asked.path, { ...asked.body, dry_run: true }, form.elements.token.value);
  if (mine !== previews) return;
  byId("confirm-text").textContent = answer.ok ? answer.text : "";
  byId("confirm-answer").textContent = answer.ok ? "" : `Not possible: ${answer.error}.`;
}

async function change(event) {
  const dialog = byId("confirm");
  event.preventDefault();
  const { actor, reason, token } = event.target.elements;
  sessionStorage.setItem("actor", actor.value);
  sessionStorage.setItem("token", token.value);
  previews++;
  byId("confirm-do").disabled = true;
  const answer = await send(asked.path, { ...asked.body, dry_run: false, actor: actor.value, reason: reason.value }, token.value);
  byId("confirm-do").disabled = false;
  if (!answer.ok) {
    byId("confirm-answer").textContent = `Not done: ${answer.error}.`;
    byId("confirm-do").focus(); // it was disabled, which takes the keyboard's place from it
    return;
  }
  dialog.close();
  content().querySelectorAll("input[type=checkbox]").forEach((one) => { one.checked = false; });
  say(answer.text);
  if (answer.job) follow(answer.job);
  else refresh();
}

function say(text) {
  byId("job").hidden = false;
  byId("job").textContent = text;
}

async function follow(job) {
  try {
    const response = await fetch(`/jobs/${encodeURIComponent(job)}`, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
    const answer = await response.json();
    say(answer.text ?? answer.error);
    if (answer.ended !== false) {
      refresh();
      return;
    }
  } catch (error) {
    say(`This worker does not say how far it is (${error.message}).`);
  }
  setTimeout(() => follow(job), JOB_MS);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button === null) return;
  if ("selected" in button.dataset && selected().length === 0) say("Nothing is selected.");
  else ask(button);
});
document.addEventListener("change", (event) => {
  if (!("selectAll" in event.target.dataset)) return;
  content().querySelectorAll("input[name=position]").forEach((one) => { one.checked = event.target.checked; });
});
byId("confirm").querySelector("form").addEventListener("submit", change);
byId("confirm-cancel").addEventListener("click", () => byId("confirm").close());
const seconds = Number(content().dataset.refreshSeconds ?? 0);
if (seconds) setInterval(refresh, seconds * 1000);
