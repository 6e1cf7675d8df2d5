"""The look of the report: one column, light or dark by the reader's setting, white A4 on paper."""

STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --ink: #14181f; --soft: #5a6472; --line: #dfe4ea; --face: #f5f7fa; --accent: #2f7ed8;
  --deep: #0b5fa5; --labels: #b8690c; --oracle: #7b838d; --fp: #d9822b; --fn: #c2186d; --space: #7b838d;
  --cost: #7a8699; --rest: #e3ebf5; --good: #1e8f6b; --on: #ffffff; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1117; --ink: #e8ecf2; --soft: #a2acba; --line: #2c333e; --face: #171c25; --accent: #4a90d9;
  --deep: #8cc4ff; --labels: #eaa64a; --oracle: #98a1ad; --fp: #e8963f; --fn: #f062b0; --space: #98a1ad;
  --cost: #8391a6; --rest: #222c3a; --good: #46c39a; --on: #0e1117; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15.5px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: 1064px; margin: 0 auto; padding: 0 32px 72px; }
h1, h2, h3, p, dl, ul, ol, figure { margin: 0; }
a { color: var(--deep); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
p, li, dd { overflow-wrap: anywhere; max-width: 76ch; }
header { padding: 52px 0 28px; border-bottom: 1px solid var(--line); }
header .brand { font-size: 12.5px; font-weight: 650; letter-spacing: .13em; text-transform: uppercase;
  color: var(--deep); }
h1 { font-size: 40px; line-height: 1.14; font-weight: 680; letter-spacing: -.022em; margin: 10px 0 12px;
  overflow-wrap: anywhere; text-wrap: balance; }
header .meta { color: var(--soft); max-width: none; }
header .meta span + span::before { content: "·"; margin: 0 9px; color: var(--line); font-weight: 700; }
.hero { display: grid; grid-template-columns: 300px 1fr; gap: 28px 52px; padding: 36px 0 12px; align-items: start; }
.hero .figure { font-size: 84px; line-height: .95; font-weight: 680; letter-spacing: -.045em; color: var(--accent);
  margin: 2px 0 10px -4px; white-space: nowrap; }
.hero .figure small { font-size: 20px; letter-spacing: 0; font-weight: 550; color: var(--soft); margin-left: 8px; }
.hero .under { color: var(--soft); font-size: 14.5px; }
.eyebrow { font-size: 12.5px; font-weight: 650; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); }
.verdict { font-size: 22px; line-height: 1.42; letter-spacing: -.008em; margin-top: 8px; max-width: 44em;
  text-wrap: pretty; }
.verdict ~ p { margin-top: 12px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; background: var(--line); margin: 28px 0 0;
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.tiles > div { background: var(--page); padding: 14px 18px 15px; }
.tiles b { display: block; font-size: 24px; line-height: 1.25; font-weight: 640; letter-spacing: -.015em; }
.tiles span { color: var(--soft); font-size: 13px; line-height: 1.4; display: block; }
nav { margin: 26px 0 0; font-size: 14px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 4px 20px; }
nav a i { font-style: normal; color: var(--soft); margin-right: 5px; }
section { padding-top: 44px; }
h2 { font-size: 25px; line-height: 1.25; font-weight: 660; letter-spacing: -.016em; margin-bottom: 8px;
  display: flex; gap: 14px; }
h2 i { font-style: normal; font-weight: 500; color: var(--soft); min-width: .9em; }
h3 { font-size: 16.5px; font-weight: 650; letter-spacing: -.005em; margin: 30px 0 6px; }
section > p, section > .lead { margin: 6px 0 14px; }
.soft, .caption { color: var(--soft); font-size: 14px; line-height: 1.5; }
.caption { margin: 8px 0 4px; }
.scroll { overflow-x: auto; margin: 12px 0; }
svg.chart { display: block; width: 100%; min-width: 640px; height: auto; }
svg.defs { position: absolute; }
svg text { fill: var(--ink); font-size: 14px; }
svg .label { font-weight: 550; } svg .strong { font-weight: 700; }
svg .under, svg .tick, svg .axis { fill: var(--soft); font-size: 12.5px; }
svg .on-fill { fill: var(--on); font-weight: 620; font-size: 13px; }
svg .line { fill: none; stroke: var(--line); stroke-width: 1; }
svg .zero { stroke: var(--soft); } svg .mean { stroke: var(--accent); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .reach { stroke: var(--oracle); stroke-width: 2; stroke-dasharray: 2 3; }
svg .whisker { stroke: var(--ink); stroke-width: 2; }
svg .whisker.deployable { stroke: var(--accent); } svg .whisker.labels { stroke: var(--labels); }
svg .whisker.oracle { stroke: var(--oracle); }
svg .dot { fill: var(--accent); stroke: var(--page); stroke-width: 1.5; }
svg .dot.labels { fill: var(--labels); } svg .dot.oracle { fill: var(--page); stroke: var(--oracle); stroke-width: 2; }
svg .fill.dice { fill: var(--accent); } svg .fill.rest { fill: var(--rest); } svg .fill.cost { fill: var(--cost); }
svg .fill.fp { fill: var(--fp); } svg .fill.fn { fill: var(--fn); } svg .fill.space { fill: var(--space); }
svg .hollow { fill: none; stroke-width: 1.6; stroke: var(--cost); }
svg .hollow.fp { stroke: var(--fp); } svg .hollow.fn { stroke: var(--fn); } svg .hollow.space { stroke: var(--space); }
svg .hatch { stroke: var(--page); stroke-width: 5; fill: none; }
svg .over { stroke: none; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.42; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12.5px; vertical-align: bottom;
  padding: 6px 12px 7px 0; border-bottom: 1.5px solid var(--ink); }
td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th.number, td.number { text-align: right; white-space: nowrap; padding-left: 10px; }
td.wide { width: 40%; } td:first-child { min-width: 128px; } td:last-child, th:last-child { padding-right: 0; }
tr.chosen td { font-weight: 640; background: var(--face); } tr.oracle td { color: var(--soft); }
.badge { display: inline-block; font-size: 11.5px; line-height: 1.5; font-weight: 620; padding: 0 7px;
  border-radius: 20px; border: 1px solid var(--line); color: var(--soft); white-space: nowrap; margin: 0 6px 0 0; }
.badge.labels { color: var(--labels); border-color: var(--labels); }
.badge.deployable { color: var(--deep); border-color: var(--accent); }
.badge.oracle { border-style: dashed; border-color: var(--oracle); }
.cell { display: inline-block; padding: 1px 8px; border-radius: 4px;
  background: color-mix(in srgb, var(--accent) calc(var(--v) * 45%), transparent); }
.groups { display: grid; grid-template-columns: repeat(2, 1fr); gap: 0 44px; }
.groups > div { break-inside: avoid; } .groups .scroll { margin: 4px 0; }
.facts { display: grid; grid-template-columns: repeat(2, 1fr); gap: 0 44px; font-size: 14.5px; margin: 10px 0; }
.facts > div { display: grid; grid-template-columns: 150px 1fr; gap: 12px; padding: 7px 0;
  border-bottom: 1px solid var(--line); }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.15em; } li { margin: 5px 0; } li::marker { color: var(--soft); }
.legend { max-width: none; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--soft);
  margin: 6px 0 2px; align-items: center; }
.legend i { display: inline-block; width: 22px; height: 11px; border-radius: 2px; margin-right: 7px;
  vertical-align: -1px; }
.legend .k-dice { background: var(--accent); } .legend .k-fp { background: var(--fp); }
.legend .k-fn { background: var(--fn); } .legend .k-cost { background: var(--cost); }
.legend .k-hollow { border: 1.6px solid var(--cost); }
.legend .k-hatched { background: repeating-linear-gradient(-45deg, var(--cost) 0 2px, transparent 2px 6px); }
.legend .k-lesion { border: 2px solid #3fd8ff; background: #07080b; }
.legend .k-found { border: 2px solid #a6f26b; background: #07080b; }
.cases { display: grid; gap: 26px; margin-top: 16px; }
.case { break-inside: avoid; }
.case .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; background: #000; border-radius: 8px;
  overflow: hidden; padding: 6px; }
.case img { display: block; width: 100%; height: auto; }
.case figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 8px; font-size: 14px;
  color: var(--soft); }
.case figcaption b { color: var(--ink); overflow-wrap: anywhere; }
pre { background: var(--face); border: 1px solid var(--line); border-radius: 8px; padding: 14px 18px; margin: 12px 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre span { display: block; padding-left: 1.6em; text-indent: -1.6em; } pre span + span { margin-top: 6px; }
.note { border-left: 3px solid var(--accent); background: var(--face); padding: 12px 18px; border-radius: 0 8px 8px 0;
  margin: 14px 0; }
.note code { overflow-wrap: anywhere; }
.glossary { display: grid; gap: 0; font-size: 14.5px; }
.glossary > div { display: grid; grid-template-columns: 236px 1fr; gap: 20px; padding: 8px 0;
  border-bottom: 1px solid var(--line); }
.glossary dt { font-weight: 620; } .glossary dd { margin: 0; color: var(--soft); }
footer { margin-top: 52px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 13px; }
@media (max-width: 760px) {
  main { padding: 0 18px 48px; } .hero, .facts, .groups { grid-template-columns: 1fr; }
  .tiles { grid-template-columns: 1fr 1fr; } .case .pair { grid-template-columns: 1fr; }
  .glossary > div { grid-template-columns: 1fr; gap: 2px; } h1 { font-size: 31px; } .hero .figure { font-size: 66px; }
}
@media print {
  @page { size: A4; margin: 15mm 15mm 17mm;
    @bottom-right { content: counter(page) " / " counter(pages); font: 8pt system-ui, sans-serif; color: #4d5765; } }
  :root { color-scheme: light; --page: #ffffff; --ink: #14181f; --soft: #4d5765; --line: #d5dbe3; --face: #f5f7fa;
    --accent: #2f7ed8; --deep: #0b5fa5; --labels: #9c5706; --oracle: #6d757f; --fp: #d9822b; --fn: #c2186d;
    --space: #7b838d; --cost: #7a8699; --rest: #e3ebf5; --good: #1e8f6b; --on: #ffffff; }
  body { font-size: 10pt; line-height: 1.45; }
  main { max-width: none; padding: 0; } header { padding-top: 0; } nav { display: none; }
  h1 { font-size: 25pt; } h2 { font-size: 15pt; } h3 { font-size: 11.5pt; margin-top: 16pt; }
  .hero { grid-template-columns: 215px 1fr; gap: 18px 30px; padding: 20pt 0 4pt; align-items: start; }
  .hero .figure { font-size: 46pt; } .verdict { font-size: 13.5pt; }
  .tiles b { font-size: 15pt; } .tiles > div { padding: 9px 12px; } .tiles span { font-size: 8.5pt; }
  section { padding-top: 22pt; } h2, h3 { break-after: avoid; }
  h2 + *, h3 + *, .lead { break-before: avoid; }
  .scroll { overflow: visible; } .scroll:has(> svg) { break-inside: avoid; } svg.chart { min-width: 0; }
  table { font-size: 8.7pt; } th { font-size: 8pt; } thead { display: table-header-group; }
  tr, .facts > div, .glossary > div, .note, .case, .tiles, .legend { break-inside: avoid; }
  td, th { padding-top: 4px; padding-bottom: 4px; } p, li { orphans: 3; widows: 3; }
  .facts, .glossary, .caption, .soft, pre, code { font-size: 8.7pt; } .legend { font-size: 8.5pt; }
  .case figcaption { font-size: 8.7pt; } .cases { display: block; } .case { margin-bottom: 13pt; }
  p, li, dd, .caption { max-width: none; } section > p, .legend { break-after: avoid; }
  a { color: inherit; } footer { margin-top: 24pt; }
}
"""
