// Small helpers for the page. Text always goes in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties (data-… and aria-… as attributes) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(data|aria)-|^(role|for|scope|tabindex)$/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function problem(text) {
  const line = byId("problem");
  line.textContent = text;
  line.hidden = !text;
  if (text) line.scrollIntoView?.({ block: "nearest" });
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Three significant digits, as a size is measured: 0.123, 1.23, 12.3, 1,234. */
export function significant(value) {
  const digits = value === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return number(value, Math.min(digits, 4));
}

/** Keeps how things are drawn, without names. A browser that forbids storage keeps nothing. */
export const preferences = {
  read() {
    try {
      return JSON.parse(localStorage.getItem("reader") ?? "{}") ?? {};
    } catch {
      return {};
    }
  },
  write(values) {
    try {
      localStorage.setItem("reader", JSON.stringify(values));
    } catch {
      // Private windows may refuse; the reader works without.
    }
  },
};
