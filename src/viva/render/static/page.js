"use strict";
// The page of a bank, and of a source file. Without this script everything is there and readable; it adds the rest.

const root = document.documentElement;
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const store = {
  get(key) { try { return localStorage.getItem(`viva.${key}`); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(`viva.${key}`, value); } catch { /* a private window keeps nothing */ } },
};
const make = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
};

// --- language and appearance: on every page ---

function setLanguage(language) {
  root.dataset.ui = language;
  root.lang = document.body.dataset.mode === "source" ? language : root.lang;
  store.set("language", language);
  for (const name of ["placeholder", "title", "aria-label"])
    for (const element of $$(`[data-${language}-${name}]`)) element.setAttribute(name, element.getAttribute(`data-${language}-${name}`));
}

function setTheme(theme) {
  root.dataset.theme = theme;
  store.set("theme", theme);
}

const nextTheme = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
};
const nextLanguage = () => setLanguage(root.dataset.ui === "zh" ? "en" : "zh");

root.classList.add("js");
if (store.get("theme")) setTheme(store.get("theme"));
setLanguage(new URLSearchParams(location.search).get("ui") || store.get("language") || (navigator.language.startsWith("zh") ? "zh" : "en"));
$("#theme").addEventListener("click", nextTheme);
$("#language").addEventListener("click", nextLanguage);

// --- a source file: to the cited lines ---

if (document.body.dataset.mode === "source") {
  const hit = location.hash ? null : $(".line.hit");
  if (hit) hit.scrollIntoView({ block: "center", behavior: "instant" });
} else startBank();

// --- a bank ---

function startBank() {
  const articles = $$("article");
  const texts = new Map(articles.map((article) => [article.id, article.textContent.toLowerCase()]));
  const served = document.body.dataset.mode === "served";
  const drawer = $("#drawer"), help = $("#help"), search = $("#search");
  let current = null, recall = store.get("recall") === "on";
  const pressed = (name) => $$(`[data-${name}][aria-pressed="true"]`, $("#side")).map((chip) => chip.dataset[name]);
  const shown = () => articles.filter((article) => !entry(article).hidden);
  const entry = (article) => $(`[data-entry="${article.id}"]`);
  const checked = () => $$("#side input[type=checkbox]:checked").map((box) => box.value);

  // sections
  function reveal(part, open) {
    const button = $("h3 button", part);
    button.setAttribute("aria-expanded", String(open));
    $(".body", part).hidden = !open;
  }
  const revealAll = (article, open) => $$(".part", article).forEach((part) => reveal(part, open));
  const isOpen = (part) => $("h3 button", part).getAttribute("aria-expanded") === "true";
  const byDefault = (article) => {
    revealAll(article, !recall);
    if (!recall) reveal($('[data-part="9"]', article), false);
  };
  function setRecall(on) {
    recall = on;
    store.set("recall", on ? "on" : "off");
    $("#recall").setAttribute("aria-pressed", String(on));
    articles.forEach(byDefault);
  }

  // which question is shown
  const aim = (hash) => hash.length > 1 ? document.getElementById(hash.slice(1)) : null;
  function show(article, focus = true) {
    if (!article) return;
    current = article;
    if (aim(location.hash)?.closest("article") !== article) history.replaceState(null, "", `#${article.id}`); // the address names what is seen
    for (const each of articles) {
      each.hidden = each !== article;
      const link = entry(each);
      link.classList.toggle("current", each === article);
      if (each === article) { link.firstElementChild.nextElementSibling.setAttribute("aria-current", "true"); link.scrollIntoView({ block: "nearest" }); }
      else link.firstElementChild.nextElementSibling.removeAttribute("aria-current");
    }
    const list = shown(), at = list.indexOf(article);
    for (const link of $$("[data-step]", article)) {
      const to = list[at + Number(link.dataset.step)];
      link.hidden = !to;
      if (to) link.href = `#${to.id}`;
    }
    $("#side").classList.remove("open");
    $("#menu").setAttribute("aria-expanded", "false");
    if (focus) { window.scrollTo({ top: 0, behavior: "instant" }); article.focus({ preventScroll: true }); }
    markFound();
  }
  function follow() {
    const target = aim(location.hash);
    const article = target && target.closest("article");
    if (!article) return show(current && !entry(current).hidden ? current : shown()[0], false);
    show(article);
    if (target !== article) {
      const part = target.closest(".part");
      if (part) reveal(part, true);
      if (target.tagName === "DETAILS") target.open = true;
      target.scrollIntoView();
    }
  }
  // At once: what sets location.hash is followed a task later, and until then the question before it stays in sight.
  function go(hash) {
    if (hash !== location.hash) history.pushState(null, "", hash);
    follow();
  }
  const step = (by) => {
    const to = shown()[shown().indexOf(current) + by];
    if (to) go(`#${to.id}`);
  };

  // filters and search
  function filter() {
    const levels = pressed("level"), modules = pressed("module");
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const article of articles) {
      const fits = (!levels.length || levels.includes(article.dataset.level)) && (!modules.length || modules.includes(article.dataset.module));
      entry(article).hidden = !(fits && terms.every((term) => texts.get(article.id).includes(term)));
    }
    for (const group of $$("[data-group]")) group.hidden = !$$("[data-entry]", group).some((each) => !each.hidden);
    const list = shown();
    $("#count").textContent = String(list.length);
    $("#clear").hidden = !(levels.length || modules.length || terms.length);
    $("#nothing").hidden = list.length > 0;
    if (!list.length) articles.forEach((article) => { article.hidden = true; });
    else show(list.includes(current) ? current : list[0], false);
    markFound();
  }
  function markFound() {
    if (!window.CSS || !CSS.highlights) return;
    CSS.highlights.delete("found");
    const terms = search.value.toLowerCase().split(/\s+/).filter((term) => term.length > 1);
    if (!terms.length || !current) return;
    const ranges = [], walker = document.createTreeWalker(current, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node && ranges.length < 500; node = walker.nextNode())
      for (const term of terms)
        for (let at = node.data.toLowerCase().indexOf(term); at >= 0; at = node.data.toLowerCase().indexOf(term, at + 1)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + term.length);
          ranges.push(range);
        }
    CSS.highlights.set("found", new Highlight(...ranges));
  }
  function clear() {
    search.value = "";
    $$("#side [aria-pressed]").forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    filter();
  }

  // citations: the lines in a drawer, with their surroundings where the file can be had
  async function cite(key) {
    const citation = document.getElementById(key);
    $("#drawer-place").textContent = citation.dataset.place;
    $("#drawer-source").textContent = citation.dataset.source;
    $("#drawer-note").hidden = citation.dataset.checked === "true";
    const link = $(".sha a", citation), code = $("#drawer-code"), pre = code.parentElement;
    $("#drawer-open").hidden = !link;
    if (link) $("#drawer-open").href = link.href;
    pre.classList.remove("context");
    code.replaceChildren(...$("pre code", citation).cloneNode(true).childNodes);
    if (!drawer.open) drawer.showModal();
    pre.scrollTop = 0;
    if (!link || !served) return;
    const address = new URL(link.href);
    address.searchParams.set("fragment", "1");
    const answer = await fetch(address).catch(() => null);
    if (!answer || !answer.ok) return; // the quote is there already
    const template = document.createElement("template");
    template.innerHTML = await answer.text(); // this server's own, escaped
    code.replaceChildren(template.content);
    pre.classList.add("context");
    const hit = $(".hit", code);
    if (hit) pre.scrollTop = hit.offsetTop - pre.offsetTop - pre.clientHeight / 5;
  }

  // selection and export
  function selection() {
    const ids = checked();
    $("#selected").textContent = String(ids.length);
    for (const link of $$("[data-format]")) {
      link.setAttribute("aria-disabled", String(!ids.length));
      if (!ids.length) link.removeAttribute("href");
      else link.href = `/export?${new URLSearchParams([["format", link.dataset.format], ...ids.map((id) => ["id", id])])}`;
    }
  }
  addEventListener("beforeprint", () => {
    const ids = checked();
    if (ids.length) articles.forEach((article) => { article.hidden = !ids.includes(article.id); });
  });
  addEventListener("afterprint", () => show(current, false));

  // practice
  async function grade(form, following) {
    const article = form.closest("article"), out = $(".grades", form), button = $("button[type=submit]", form);
    const answer = following ? $("[name=more]", form).value : form.elements.answer.value;
    button.disabled = true;
    const waiting = words("grading", "by");
    out.append(waiting);
    try {
      const response = await fetch("/practice/grade", {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ question: article.id, answer, follow_up: following }),
      });
      const graded = await response.json();
      if (!response.ok) throw new Error(graded.error);
      out.replaceChildren(...grades(article, graded, form));
      $(".report", form).hidden = false;
    } catch (error) {
      const line = words("failed", "missing");
      line.append(error.message);
      out.append(line);
    } finally {
      waiting.remove();
      button.disabled = false;
    }
  }
  const WORDS = JSON.parse($("#labels").textContent);
  function words(key, name = "") {
    const element = make("span", "", name);
    for (const [at, language] of ["zh", "en"].entries()) element.append(make("span", WORDS[key][at], `ui-${language}`));
    return element;
  }
  function note(texts) {
    const element = make("p", "", "by");
    for (const language of ["zh", "en"]) element.append(make("span", texts[language], `ui-${language}`));
    return element;
  }
  function grades(article, graded, form) {
    const list = make("ul");
    for (const point of graded.points) {
      const item = make("li"), text = make("span");
      const original = $(`[data-point="${point.id}"]`, article).cloneNode(true);
      $("small", original).remove();
      text.append(...original.childNodes);
      if (point.why) text.append(make("br"), make("small", point.why));
      item.append(words(point.verdict, `verdict ${point.verdict}`), text);
      list.append(item);
    }
    const parts = [make("p", `${graded.score} / 100`, "score"), list, note(graded.note)];
    if (graded.follow_up) {
      const more = make("label"), hint = make("span"), area = document.createElement("textarea"), send = make("button");
      hint.append(words("follow_up"), make("b", ` ${graded.follow_up}`));
      area.name = "more";
      area.rows = 4;
      send.type = "button";
      send.append(words("grade"));
      send.addEventListener("click", () => { if (area.value.trim()) grade(form, true); });
      more.append(hint, area);
      parts.push(more, send);
    }
    return parts;
  }
  function openPractice(open) {
    const form = current && $(".practice", current);
    if (!form) return;
    form.hidden = open === undefined ? !form.hidden : !open;
    $("[data-practice]", current).setAttribute("aria-expanded", String(!form.hidden));
    if (form.hidden) return;
    revealAll(current, false);
    form.elements.answer.focus();
  }

  // what is clicked
  document.addEventListener("click", (event) => {
    const target = event.target, plain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.button);
    const citation = target.closest("a[data-cite]"), inside = target.closest('a[href^="#"]');
    const head = target.closest(".part h3 button"), chip = target.closest(".chips button");
    if (citation && plain && document.getElementById(citation.dataset.cite)) { event.preventDefault(); cite(citation.dataset.cite); }
    else if (inside && plain && aim(inside.hash)?.closest("article")) { event.preventDefault(); go(inside.hash); }
    else if (head) reveal(head.closest(".part"), head.getAttribute("aria-expanded") !== "true");
    else if (chip) { chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true")); filter(); }
    else if (target.closest("[data-all]")) revealAll(target.closest("article"), target.closest("[data-all]").dataset.all === "show");
    else if (target.closest("[data-practice]")) openPractice();
    else if (target.closest("[data-close]")) target.closest("dialog").close();
    else if (target === drawer || target === help) target.close(); // the backdrop
  });
  document.addEventListener("submit", (event) => {
    if (event.target.matches(".practice")) { event.preventDefault(); grade(event.target, false); }
  });
  $("#side").addEventListener("change", (event) => { if (event.target.type === "checkbox") selection(); });
  $("#menu").addEventListener("click", () => {
    const open = $("#side").classList.toggle("open");
    $("#menu").setAttribute("aria-expanded", String(open));
    if (open) window.scrollTo({ top: 0, behavior: "instant" });
  });
  $("#recall").addEventListener("click", () => setRecall(!recall));
  $("#keys").addEventListener("click", () => help.showModal());
  $("#clear").addEventListener("click", clear);
  $("#print").addEventListener("click", () => print());
  $("#select-all").addEventListener("click", () => {
    shown().forEach((article) => { $("input", entry(article)).checked = true; });
    selection();
  });
  search.addEventListener("input", filter);
  addEventListener("hashchange", follow); // back, forward, an address typed

  // what is typed
  const keys = {
    j: () => step(1), k: () => step(-1), r: () => setRecall(!recall), l: nextLanguage, t: nextTheme, a: () => openPractice(true),
    "/": () => { $("#side").classList.add("open"); search.focus(); }, "?": () => help.showModal(),
    x: () => { const box = $("input", entry(current)); box.checked = !box.checked; selection(); },
    0: () => revealAll(current, !$$(".part", current).every(isOpen)),
  };
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches("textarea, input:not([type=checkbox])");
    if (event.key === "Escape" && writing) { event.target.blur(); return; }
    if (writing || event.ctrlKey || event.metaKey || event.altKey || drawer.open || help.open || !current) return;
    const part = /^[1-9]$/.test(event.key) && $(`[data-part="${event.key}"]`, current);
    if (part) { reveal(part, !isOpen(part)); part.scrollIntoView({ block: "nearest" }); }
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });

  setRecall(recall);
  selection();
  follow();
}
