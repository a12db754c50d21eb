"""One page of HTML that needs nothing else: its style, its script, tables to sort.

Everything is escaped but what is called `html`. The page forbids the browser to fetch
anything, and to run any script but ours.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from typing import Any, NamedTuple

NOTHING = "–"  # in a cell without a value

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1d2127;--dim:#596270;--line:#dde1e7;
--panel:#f5f7f9;--link:#00589c;--white:#a83c00;--grey:#00589c;--other:#596270;
--clean:#8a93a0;--attacked:#d55e00;--purified:#0072b2}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e4e8ed;--dim:#a2abb8;
--line:#333a43;--panel:#1c2026;--link:#7cbcf0;--white:#ffa066;--grey:#7cbcf0;
--other:#a2abb8;--clean:#7d8794;--attacked:#f08a3c;--purified:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:3.25rem 0 .4rem;padding-top:1rem;
border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.75rem 0 .5rem}
h1,h2,h3,p,dd,figcaption{overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:46rem}
a{color:var(--link)}
small,.dim,.facts{color:var(--dim);font-size:.86rem}
h2 small{font-weight:400;margin-left:.4rem}
.facts{max-width:none}.facts b{font-weight:500;color:var(--ink)}
code,pre{font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{margin:.6rem 0;padding:.8rem 1rem;background:var(--panel);border-radius:6px;
overflow:auto;max-width:none}
details{margin:.4rem 0}details>summary{cursor:pointer;color:var(--dim);font-size:.86rem}
td details pre{min-width:22rem}
nav ul{columns:18rem;list-style:none;margin:.8rem 0;padding:0;font-size:.94rem}
nav li{break-inside:avoid;padding:.1rem 0}
dl.threats{display:grid;grid-template-columns:max-content 1fr;gap:.3rem .9rem;
margin:.9rem 0;max-width:50rem;font-size:.92rem}
dl.threats dd{margin:0}
.tag{display:inline-block;white-space:nowrap;font-size:.75rem;line-height:1.35;
padding:0 .45em;border:1px solid var(--other);border-radius:99px;color:var(--other)}
.tag.white-box{color:var(--white);border-color:var(--white);font-weight:600}
.tag.grey-box{color:var(--grey);border-color:var(--grey)}
.tag.transfer{border-style:dashed}
.tools{display:flex;flex-wrap:wrap;gap:.4rem 1rem;align-items:center;margin:.6rem 0;
font-size:.86rem;color:var(--dim)}
.tools input[type=search]{font:inherit;color:inherit;background:var(--page);
border:1px solid var(--line);border-radius:6px;padding:.3rem .6rem;width:17rem;
max-width:100%}
html:not(.js) .tools{display:none}
.scroll{overflow:auto;max-height:36rem;border:1px solid var(--line);border-radius:8px;
margin:.6rem 0}
.cards .scroll{margin:0;align-self:start}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.88rem;
font-variant-numeric:tabular-nums}
th,td{padding:.42rem .8rem;text-align:left;white-space:nowrap;vertical-align:top;
border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{position:sticky;top:0;background:var(--panel);z-index:1;padding:0;
vertical-align:bottom}
thead button{all:unset;display:block;width:100%;box-sizing:border-box;cursor:pointer;
padding:.5rem .8rem;font-size:.8rem;font-weight:600;color:var(--dim);line-height:1.3;
white-space:normal;min-width:4.6rem}
thead button:focus-visible,.scroll:focus-visible,a:focus-visible,summary:focus-visible
{outline:2px solid var(--link);outline-offset:-2px}
thead button::after{content:"\\a0\\2195";opacity:.35}
[aria-sort=ascending] button::after{content:"\\a0\\2191";opacity:1}
[aria-sort=descending] button::after{content:"\\a0\\2193";opacity:1}
html:not(.js) thead button::after{content:""}
td.n,th.n button{text-align:right}
tbody tr:hover{background:var(--panel)}
.js table:not(.all) .x{display:none}
.share{display:grid;grid-template-columns:4.2em 8.2em max-content;align-items:baseline}
.share b{text-align:right}.share i{font-style:normal;color:var(--dim);padding-left:.6em}
.bar{position:relative;display:block;height:3px;margin-top:.3rem;background:var(--line);
border-radius:2px;width:13.5rem}
.bar u{position:absolute;top:0;bottom:0;left:var(--l);right:calc(100% - var(--h));
background:var(--dim);opacity:.6;min-width:2px}
.bar s{position:absolute;top:-2px;width:3px;height:7px;left:calc(var(--m) - 1px);
background:var(--ink)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));
gap:1rem;margin:.8rem 0}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:.8rem .9rem;
min-width:0}
figcaption{font-size:.86rem;margin-bottom:.5rem}
figcaption b{margin-right:.4em}
.tiles{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.5rem}
.tiles div{font-size:.76rem;line-height:1.35;min-width:0;overflow-wrap:anywhere}
.tiles img{width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;
display:block;border-radius:4px;margin-bottom:.25rem;background:var(--panel)}
.tiles span{display:block;color:var(--dim)}
.key{margin-right:1.2rem;white-space:nowrap}.key svg{display:inline-block;width:1.75rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--dim);font:10px system-ui,sans-serif}
footer{margin-top:4rem;padding-top:1rem;border-top:1px solid var(--line)}
@media (max-width:40rem){main{padding:1.5rem 1rem 3rem}h1{font-size:1.5rem}
h2{margin-top:2.5rem}.scroll{max-height:30rem}dl.threats{grid-template-columns:1fr;
gap:.1rem}dl.threats dd{margin-bottom:.5rem}th,td{padding:.42rem .5rem}
thead button{padding:.5rem;min-width:0}
.share{grid-template-columns:max-content;justify-items:start}.share i{padding:0}
.bar{width:8.5rem}}
@media print{.scroll{max-height:none;overflow:visible}.tools{display:none}}
"""
_SCRIPT = """
document.documentElement.classList.add('js');
const key=(row,i)=>{const c=row.cells[i];return c.dataset.v??c.textContent.trim()};
function sort(button){
 const th=button.closest('th'),head=th.parentNode,body=head.closest('table').tBodies[0];
 const i=th.cellIndex,down=th.getAttribute('aria-sort')==='ascending';
 for(const h of head.cells)h.setAttribute('aria-sort','none');
 th.setAttribute('aria-sort',down?'descending':'ascending');
 const rows=[...body.rows].map(row=>[key(row,i),row]);
 const numbers=rows.every(([k])=>k===''||!isNaN(k));
 const compare=(a,b)=>a[0]===''||b[0]===''?(a[0]==='')-(b[0]===''):
  (down?-1:1)*(numbers?a[0]-b[0]:a[0].localeCompare(b[0],'en',{numeric:true}));
 body.append(...rows.sort(compare).map(r=>r[1]));
}
function filter(box){
 const of=box.closest('section').querySelector('#'+box.dataset.of);
 const words=box.value.toLowerCase().split(/\\s+/).filter(Boolean);let shown=0;
 for(const row of of.tBodies[0].rows){
  const told=row.textContent.toLowerCase();
  row.hidden=!words.every(w=>told.includes(w));shown+=!row.hidden;
 }
 const count=box.closest('.tools').querySelector('output');
 count.textContent=words.length?shown+' of '+of.tBodies[0].rows.length+' rows':'';
}
document.addEventListener('click',e=>{
 const button=e.target.closest('thead button');if(button)sort(button)});
document.addEventListener('input',e=>{
 if(e.target.type==='search')filter(e.target);
 if(e.target.type==='checkbox')
  document.getElementById(e.target.dataset.of).classList.toggle('all',e.target.checked);
});
"""
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src '{allowed}'; base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""
_LONG = 8  # rows from which on a table has a filter


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      html: what is shown.
      key: what it is sorted by: a number, a text, "" for last; None for what is shown.
      kind: class of the cell, "n" for numbers.
    """

    html: str
    key: float | str | None = None
    kind: str = ""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      title: not yet escaped.
      cells: from above.
      extra: whether it is seen only by those who ask for all columns.
    """

    title: str
    cells: Sequence[Cell]
    extra: bool = False


def text(value: Any) -> str:
    """Anything as HTML shows it."""
    return html.escape(str(value))


def said(value: Any) -> Cell:
    """A cell of words, or of nothing."""
    return Cell(NOTHING, "") if value in (None, "") else Cell(text(value))


def number(value: float, shown: str = "") -> Cell:
    """A cell of a number, in the words `shown` where they are given."""
    exact = str(value) if isinstance(value, int) else f"{value:.6g}"
    return Cell(text(shown or exact), value, "n")


def tag(label: str) -> str:
    """A threat model, in a frame."""
    return f'<span class="tag {text(label.replace(" ", "-"))}">{text(label)}</span>'


def table(name: str, columns: Sequence[Column], told: str) -> str:
    """A table that sorts by a click on the head of a column.

    Args:
      name: of the element, of which there is one on the page; letters, digits, dashes.
      columns: all of one length.
      told: what it shows, for those who do not see it.
    """
    count, extra = len(columns[0].cells), sum(column.extra for column in columns)
    tools = ""
    if count >= _LONG:
        tools += (
            f'<input type=search data-of="{name}" placeholder="filter rows" '
            f'aria-label="filter rows: all of these words"><output></output>'
        )
    if extra:
        tools += (
            f'<label><input type=checkbox data-of="{name}"> all columns '
            f"({extra} more)</label>"
        )
    head = "".join(_head(column) for column in columns)
    aligned = [
        column._replace(cells=[cell._replace(kind="n") for cell in column.cells])
        if _is_numeric(column)
        else column
        for column in columns
    ]
    body = "\n".join(
        "<tr>" + "".join(_cell(column, i) for column in aligned) + "</tr>"
        for i in range(count)
    )
    return (
        (f'<div class="tools">{tools}</div>' if tools else "")
        + f'<div class="scroll" tabindex=0 role=region aria-label="{text(told)}">'
        f'<table id="{name}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _is_numeric(column: Column) -> bool:
    return any(cell.kind == "n" for cell in column.cells)


def _head(column: Column) -> str:
    classes = "n " * _is_numeric(column) + "x" * column.extra
    return (
        f'<th scope=col aria-sort="none" class="{classes.strip()}">'
        f"<button type=button>{text(column.title)}</button></th>"
    )


def _cell(column: Column, i: int) -> str:
    shown, key, kind = column.cells[i]
    classes = f"{kind} {'x' if column.extra else ''}".strip()
    attributes = f' class="{classes}"' if classes else ""
    if key is not None:
        attributes += f' data-v="{text(key)}"'
    return f"<td{attributes}>{shown}</td>"


def fields(pairs: Sequence[tuple[str, Cell]]) -> str:
    """Names and their values, one below the other."""
    rows = "".join(
        f"<tr><th scope=row>{text(name)}</th><td>{cell.html}</td></tr>"
        for name, cell in pairs
    )
    return (
        '<div class="scroll" tabindex=0 role=region aria-label="one row">'
        f"<table><tbody>{rows}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """What holds for all that follows, in a line; values are HTML."""
    if not pairs:
        return ""
    told = " · ".join(f"{text(name)} <b>{value}</b>" for name, value in pairs)
    return f'<p class="facts">{told}</p>'


def folded(summary: str, html: str) -> str:
    """HTML that is seen by who asks for it."""
    return f"<details><summary>{text(summary)}</summary>{html}</details>"


def section(name: str, title: str, remark: str, html: str) -> str:
    """A part of the page with a heading, to which `#name` leads."""
    small = f" <small>{text(remark)}</small>" if remark else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{text(title)}{small}</h2>\n{html}\n</section>'
    )


def contents(told: str, entries: Sequence[tuple[str, str, str]]) -> str:
    """Links to sections: name, title and remark of each; `told` is what they share."""
    items = "".join(
        f'<li><a href="#{name}">{text(title)}</a> <small>{text(remark)}</small></li>'
        for name, title, remark in entries
    )
    return f'<nav aria-label="{text(told)}"><h3>{text(told)}</h3><ul>{items}</ul></nav>'


def document(title: str, body: str) -> str:
    """The whole file, of a title (not yet escaped) and HTML."""
    digest = hashlib.sha256(_SCRIPT.encode()).digest()
    return _PAGE.format(
        allowed=f"sha256-{base64.b64encode(digest).decode()}",
        title=text(title),
        style=_STYLE,
        body=body,
        script=_SCRIPT,
    )
