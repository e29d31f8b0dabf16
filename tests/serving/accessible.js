// What is wrong for people who do not see, or not well: contrast of text against what is behind it (WCAG 2.2, 1.4.3),
// names of controls (4.1.2), texts for images (1.1.1), and unique ids.
() => {
  const problems = [];
  const visible = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && e.getClientRects().length;
  const name = (e) =>
    e.getAttribute("aria-label") || e.innerText?.trim() || e.title || e.querySelector("img")?.alt ||
    [...(e.labels ?? [])].map((l) => l.textContent.trim()).join(" ") ||
    document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
  for (const e of document.querySelectorAll("a, button, input, select, summary, dialog[open], section"))
    if (visible(e) && !name(e)) problems.push(`no name: ${e.outerHTML.slice(0, 120)}`);
  for (const e of document.querySelectorAll("img")) if (e.getAttribute("alt") === null) problems.push(`no alt: ${e.src}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids) if (ids.filter((each) => each === id).length > 1) problems.push(`id twice: ${id}`);
  if (!document.documentElement.lang || !document.title) problems.push("no language or title");
  if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) problems.push("h1, main");
  const parse = (c) => (c.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (e) => {
    for (let each = e; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.querySelector("dialog[open]") ?? document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(e) || e.closest(".hidden, .skip, :disabled, label:has(:disabled)")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) problems.push(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.data.trim()}`);
  }
  return problems;
}
