"use strict";
// Sorting and filtering of the table of checks, and the way to it from a plot. Without this script the page shows the same, in the order it was written.
{
  const table = document.getElementById("all-checks");
  const body = table.tBodies[0];
  const written = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];

  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    if (value === undefined) return cell.textContent.trim();
    return value === "" ? NaN : Number(value);
  };

  // Cells without a number come last in either direction.
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a === b ? 0 : sign * (a < b ? -1 : 1);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Text starts from its beginning, numbers from the largest.
      const text = written.every((row) => row.cells[column].dataset.value === undefined);
      const sorted = head.getAttribute("aria-sort");
      const up = sorted ? sorted === "descending" : text;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...written].sort((a, b) => compare(key(a, column), key(b, column), up ? 1 : -1));
      body.append(...rows);
    });
  });

  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  filter.closest("p").hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    let count = 0;
    for (const row of written) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += !row.hidden;
    }
    shown.textContent = filter.value.trim() ? `${count} of ${written.length}` : "";
  });

  // A mark in a plot leads to its row, even where the filter hides it. (No links: a picture has none for those who cannot see it.)
  document.querySelectorAll("[data-row]").forEach((mark) => mark.addEventListener("click", () => (location.hash = mark.dataset.row)));
  addEventListener("hashchange", () => {
    const row = document.getElementById(location.hash.slice(1));
    if (row && row.hidden) {
      filter.value = "";
      filter.dispatchEvent(new Event("input"));
      row.scrollIntoView();
    }
  });

  // Paper cannot be unfolded.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
}
