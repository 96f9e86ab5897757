// The filters of the gallery: a box for text, and a choice for each of some columns. Without JavaScript the table is complete.
document.addEventListener("DOMContentLoaded", () => {
  const title = document.querySelector("h1");
  const table = document.querySelector("table");
  if (!table || !title || !title.textContent.startsWith("Gallery")) return;
  const heads = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  const rows = [...table.querySelectorAll("tbody tr")];
  const bar = document.createElement("form");
  bar.className = "gallery-filters";
  bar.addEventListener("submit", (event) => event.preventDefault());

  const labelled = (text, control) => {
    const label = document.createElement("label");
    label.append(text, " ", control);
    bar.append(label);
    return control;
  };
  const search = labelled("search", document.createElement("input"));
  search.type = "search";
  const choices = ["source", "target", "modality", "proven by"].map((name) => {
    const column = heads.indexOf(name);
    const select = labelled(name, document.createElement("select"));
    const values = new Set(rows.map((row) => row.cells[column].textContent.trim()));
    select.append(new Option("all", ""));
    for (const value of [...values].sort((a, b) => a.localeCompare(b))) select.append(new Option(value, value));
    return { name, column, select };
  });
  const count = document.createElement("output");
  count.setAttribute("aria-live", "polite");
  bar.append(count);

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits =
        words.every((word) => text.includes(word)) &&
        choices.every((c) => !c.select.value || row.cells[c.column].textContent.trim() === c.select.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length} specs`;
    const state = new URLSearchParams();
    if (search.value) state.set("search", search.value);
    for (const c of choices) if (c.select.value) state.set(c.name, c.select.value);
    history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
  };
  const state = new URLSearchParams(location.hash.slice(1));
  search.value = state.get("search") ?? "";
  for (const c of choices) c.select.value = state.get(c.name) ?? "";
  bar.addEventListener("input", show);
  (table.closest(".md-typeset__scrollwrap") ?? table).before(bar);
  document.body.classList.add("gallery");
  show();
});
