"""The page's style sheet and script: no font, image or script from elsewhere."""

from recipes.report.style import BACKGROUND, BACKGROUND_DARK, GRID, GRID_DARK, TEXT, TEXT_DARK

_DARK = f"""color-scheme: dark;
  --background: {BACKGROUND_DARK}; --text: {TEXT_DARK}; --muted: #a3abb5; --grid: {GRID_DARK};
  --shade: #1c2027;"""

STYLE = f"""
:root {{ color-scheme: light;
  --background: {BACKGROUND}; --text: {TEXT}; --muted: #59636e; --grid: {GRID};
  --shade: #f5f7f9; }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {_DARK} }} }}
:root[data-theme="dark"] {{ {_DARK} }}
body {{ margin: 0; background: var(--background); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }}
header {{ display: flex; justify-content: space-between; align-items: start; gap: 1rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .5rem; }}
p, li, dd {{ max-width: 48rem; }}
p {{ margin: .5rem 0; }}
.muted, figcaption, caption {{ color: var(--muted); font-size: .9rem; }}
.table {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .4rem .75rem; border-bottom: 1px solid var(--grid); text-align: left;
  vertical-align: top; }}
thead th {{ border-bottom-width: 2px; vertical-align: bottom; }}
tbody th {{ font-weight: 600; min-width: 11rem; }}
th:first-child {{ padding-left: 0; }}
figure {{ margin: 0; }}
.panels {{ display: grid; gap: 1rem 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21.5rem), 1fr)); }}
.panels svg {{ display: block; width: 100%; height: auto; }}
.panel {{ font-size: .9rem; margin: .5rem 0 .25rem; }}
ul.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: 0 1.25rem; padding: 0;
  margin: .75rem 0 0; font-size: .9rem; }}
figcaption {{ max-width: 48rem; }}
ul.key {{ list-style: none; padding: 0; margin: 1rem 0; }}
ul.key svg, ul.legend svg {{ width: 2rem; height: .75rem; margin-right: .5rem;
  vertical-align: baseline; }}
ul.answer {{ padding-left: 1.2rem; }}
dt {{ font-weight: 600; margin-top: .75rem; }}
dd {{ margin: 0; }}
code {{ font: .9em ui-monospace, SFMono-Regular, Consolas, monospace; }}
button {{ font: inherit; font-size: .9rem; color: var(--text); background: var(--shade);
  border: 1px solid var(--grid); border-radius: .4rem; padding: .3rem .75rem; cursor: pointer;
  white-space: nowrap; }}
button:focus-visible {{ outline: 2px solid currentColor; outline-offset: 2px; }}
@media (max-width: 40rem) {{
  main {{ padding: 1.25rem 1.25rem 3rem; }}
  thead {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
  table, tbody, tr, tbody th, td {{ display: block; }}
  tr {{ padding: .5rem 0; border-bottom: 1px solid var(--grid); }}
  tbody th, td {{ border: 0; padding: .1rem 0; }}
  td {{ display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }}
  td::before {{ content: attr(data-label); color: var(--muted); }} }}
@media print {{ button {{ display: none; }} figure {{ break-inside: avoid; }} }}
"""

SCRIPT = """
const root = document.documentElement, button = document.getElementById("theme");
const isDark = () => root.dataset.theme
  ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  name();
});
name();
button.hidden = false;
"""
