// What is looked for in an open page. Each check returns complaints in words; none means the page passes.
(() => {
  const shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const said = (element) => {
    const kind = element.getAttribute("class");
    const text = (element.getAttribute("aria-label") || element.textContent || "").trim().replace(/\s+/g, " ");
    return `<${element.localName}${kind ? ` class="${kind}"` : ""}> “${text.slice(0, 60)}”`;
  };
  const scrolls = (element) => {
    for (let e = element.parentElement; e; e = e.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    }
    return false;
  };
  const textNodes = () => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const node = walker.currentNode;
      const svgTitle = node.parentElement.namespaceURI.endsWith("svg") && node.parentElement.localName === "title";
      if (node.data.trim() && !svgTitle && !["SCRIPT", "STYLE"].includes(node.parentElement.tagName)) found.push(node);
    }
    return found;
  };
  const boxOf = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return range.getBoundingClientRect();
  };

  // Colours as [red, green, blue, alpha], 0 to 255 and 0 to 1; the canvas knows every notation.
  const known = new Map();
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (css) => {
    if (!known.has(css)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = "rgba(0, 0, 0, 0)";
      pen.fillStyle = css;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      known.set(css, [r, g, b, a / 255]);
    }
    return known.get(css);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
  // WCAG 2.2: relative luminance, and the ratio of two.
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (first, second) => {
    const [a, b] = [luminance(first), luminance(second)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  // The colour behind an element's content; null where a picture or a gradient lies there.
  const backdrop = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      if (e instanceof SVGElement) continue;
      const style = getComputedStyle(e);
      if (style.backgroundImage !== "none") return null;
      layers.push(rgba(style.backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const filled = (shape) => {
    const style = getComputedStyle(shape);
    const [r, g, b, a] = style.fill === "none" ? [0, 0, 0, 0] : rgba(style.fill);
    return [r, g, b, a * Number(style.fillOpacity) * Number(style.opacity)];
  };
  // The colour behind a text of a drawing: the page, and the shapes that were drawn before it at its middle.
  const behindDrawn = (text) => {
    const box = text.getBoundingClientRect();
    let colour = backdrop(text);
    for (const shape of all("rect, circle, ellipse, path, polygon", text.ownerSVGElement)) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING) || !colour) continue;
      const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
      if (shape.isPointInFill(middle.matrixTransform(shape.getScreenCTM().inverse()))) colour = over(filled(shape), colour);
    }
    return colour;
  };
  const opacity = (element) => {
    let value = 1;
    for (let e = element; e; e = e.parentElement) value *= Number(getComputedStyle(e).opacity);
    return value;
  };

  const CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex]";

  window.pageChecks = {
    language() {
      const found = [];
      if (!document.documentElement.lang) found.push("the page names no language");
      if (!document.title.trim()) found.push("the page has no title");
      return found;
    },

    headings() {
      const levels = all("h1, h2, h3, h4, h5, h6").map((element) => [Number(element.localName[1]), element]);
      const first = levels.filter(([level]) => level === 1).length;
      const found = first === 1 ? [] : [`the page has ${first} headings of the first level`];
      let last = 0;
      for (const [level, element] of levels) {
        if (level > last + 1) found.push(`a level is left out before ${said(element)}`);
        last = level;
      }
      return found;
    },

    images() {
      const found = [];
      for (const image of all("img")) {
        const decorative = ["none", "presentation"].includes(image.getAttribute("role"));
        if (!decorative && !(image.alt || "").trim()) found.push(`a picture has no words: ${image.src.slice(0, 60)}`);
        if (image.complete && !image.naturalWidth) found.push(`a picture does not show: ${image.alt}`);
      }
      for (const drawing of all("svg")) {
        const words = drawing.getAttribute("role") === "img" && (drawing.getAttribute("aria-label") || "").trim();
        if (drawing.getAttribute("aria-hidden") !== "true" && !words) found.push(`a drawing has no words: ${said(drawing)}`);
      }
      return found;
    },

    tables() {
      const found = [];
      for (const table of all("table")) {
        const heads = all("th", table);
        if (!heads.length) found.push(`a table has no heading: ${said(table)}`);
        for (const head of heads) {
          const words = head.textContent.trim() || all("img[alt]", head).some((image) => image.alt.trim());
          if (!["col", "row", "colgroup", "rowgroup"].includes(head.getAttribute("scope"))) found.push(`a heading of a table has no scope: ${said(head)}`);
          if (!words) found.push(`a heading of a table is empty: ${said(table)}`);
        }
      }
      return found;
    },

    // Everything that can have the focus has a name and can be reached; what scrolls can have the focus; links lead somewhere.
    controls() {
      const found = [];
      for (const element of all(CONTROLS)) {
        const label = element.getAttribute("aria-label") || "";
        const labels = element.labels && [...element.labels].map((one) => one.textContent).join(" ");
        const own = element.matches("a, button, summary") ? element.textContent : "";
        if (!`${label}${labels || ""}${own}`.trim()) found.push(`a control has no name: ${said(element)}`);
        if (label && element.matches("div, span") && !element.getAttribute("role")) found.push(`a name needs a role: ${said(element)}`);
      }
      for (const element of all("*", document.body)) {
        const style = getComputedStyle(element);
        if (shown(element) && ["auto", "scroll"].includes(style.overflowX) && element.scrollWidth > element.clientWidth + 1 && element.tabIndex < 0) {
          found.push(`no key scrolls ${said(element)}`);
        }
        if (element.matches("[onclick], [role=button], [role=link]") && !element.matches(CONTROLS)) found.push(`no key reaches ${said(element)}`);
      }
      const ids = all("[id]").map((element) => element.id);
      for (const id of ids.filter((one, i) => ids.indexOf(one) !== i)) found.push(`two elements are called ${id}`);
      for (const link of all('a[href^="#"]')) {
        if (!document.getElementById(decodeURIComponent(link.hash.slice(1)))) found.push(`a link leads nowhere: ${said(link)}`);
      }
      return found;
    },

    overflow() {
      const page = document.documentElement, width = page.clientWidth, found = [];
      if (page.scrollWidth > width) found.push(`the page is ${page.scrollWidth} px wide in a window of ${width}`);
      for (const element of all("*", document.body)) {
        if (!shown(element)) continue;
        const box = element.getBoundingClientRect();
        if (box.width && (box.right > width + 1 || box.left < -1) && !scrolls(element)) found.push(`beyond the window: ${said(element)}`);
        const style = getComputedStyle(element);
        const clips = ["hidden", "clip"].includes(style.overflowX) && style.clipPath === "none";
        if (clips && element.scrollWidth > element.clientWidth + 1) found.push(`cut off: ${said(element)}`);
      }
      return found;
    },

    // Words are not torn between letters; names of folders and what is longer than a line may be.
    words() {
      const found = [];
      for (const node of textNodes()) {
        const parent = node.parentElement;
        if (!shown(parent) || parent.closest("code, pre, svg, .options")) continue;
        for (const match of node.data.matchAll(/\S+/gu)) {
          if (/[\d/\\_]/.test(match[0]) || match[0].length > 16) continue;
          const range = document.createRange();
          range.setStart(node, match.index);
          range.setEnd(node, match.index + match[0].length);
          const lines = new Set([...range.getClientRects()].filter((box) => box.width).map((box) => Math.round(box.top)));
          if (lines.size > 1 && !match[0].includes("-")) found.push(`a word is torn: ${match[0]} in ${said(parent)}`);
        }
      }
      return found;
    },

    charts(smallest) {
      const found = [];
      for (const drawing of all("svg[role=img]")) {
        if (!shown(drawing)) continue;
        const frame = drawing.getBoundingClientRect();
        const texts = all("text", drawing).map((text) => [text, text.getBoundingClientRect()]);
        for (const [i, [text, box]] of texts.entries()) {
          const outside = box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
          if (outside) found.push(`a label leaves its chart: ${said(text)} in ${said(drawing)}`);
          const scale = drawing.getScreenCTM().a, size = scale * parseFloat(getComputedStyle(text).fontSize);
          if (size < smallest) found.push(`a label is ${size.toFixed(1)} px high: ${said(text)} in ${said(drawing)}`);
          for (const [other, second] of texts.slice(i + 1)) {
            const x = Math.min(box.right, second.right) - Math.max(box.left, second.left);
            const y = Math.min(box.bottom, second.bottom) - Math.max(box.top, second.top);
            // Boxes have room above and below their letters.
            const room = 0.25 * Math.min(box.width, box.height, second.width, second.height);
            if (x > room && y > room) found.push(`labels lie on each other: ${said(text)} and ${said(other)}`);
          }
        }
      }
      return found;
    },

    contrast() {
      const found = [];
      for (const node of textNodes()) {
        const element = node.parentElement, box = boxOf(node);
        if (!shown(element) || !box.width || !box.height) continue;
        const drawn = element.closest("svg text");
        const style = getComputedStyle(element);
        const behind = drawn ? behindDrawn(drawn) : backdrop(element);
        if (!behind) {
          found.push(`a picture lies behind ${said(element)}`);
          continue;
        }
        const [r, g, b, a] = drawn ? filled(element) : rgba(style.color);
        const value = ratio(over([r, g, b, a * opacity(element)], behind), behind);
        const size = parseFloat(style.fontSize) * (drawn ? drawn.ownerSVGElement.getScreenCTM().a : 1);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        if (value < (large ? 3 : 4.5)) found.push(`contrast ${value.toFixed(2)}: ${said(element)}`);
      }
      return found;
    },

    // What tells arms and costs apart, by WCAG 1.4.11; thin lines of single runs are decoration.
    graphics() {
      const found = [];
      for (const shape of all("svg .line:not(.thin), svg .dot, svg .ring, svg .whisker, .bar i, .legend i")) {
        if (!shown(shape)) continue;
        const style = getComputedStyle(shape), html = shape.localName === "i";
        const paint = html ? style.backgroundColor : shape.matches(".dot") ? style.fill : style.stroke;
        const behind = backdrop(html ? shape.parentElement : shape);
        const value = paint === "none" || !behind ? 1 : ratio(over(rgba(paint), behind), behind);
        if (value < 3) found.push(`contrast ${value.toFixed(2)} of a shape: ${said(shape)}`);
      }
      return found;
    },

    // In print nothing can be opened or scrolled, and what cannot be broken must fit on a page `height` high.
    print(height) {
      const width = document.documentElement.clientWidth, found = [];
      for (const node of textNodes()) {
        const parent = node.parentElement;
        if (!parent.closest("nav") && (!shown(parent) || !boxOf(node).width)) found.push(`not printed: ${said(parent)}`);
      }
      for (const element of all("*", document.body)) {
        if (!shown(element)) continue;
        const box = element.getBoundingClientRect(), style = getComputedStyle(element);
        if (box.width && box.right > width + 1) found.push(`beyond the paper: ${said(element)}`);
        const boxed = style.overflowX !== "visible" && !element.closest("svg") && style.clipPath === "none";
        if (boxed && (element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1)) found.push(`cut in print: ${said(element)}`);
        if ((boxed || element.matches("img, svg")) && box.height > height) found.push(`higher than a page: ${said(element)}`);
      }
      return found;
    },
  };

  // For the walk by keyboard: what has the focus, as its place among all that can have it, and what is wrong with it.
  window.focusWalk = {
    expected: () => all(CONTROLS).filter((element) => shown(element) && !element.disabled).map(said),
    at() {
      const element = document.activeElement;
      if (!element || element === document.body) return null;
      const style = getComputedStyle(element), found = [];
      const drawn = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
      const behind = backdrop(element.parentElement);
      if (!drawn) found.push(`no outline shows the focus on ${said(element)}`);
      else if (style.outlineStyle !== "auto" && behind && ratio(over(rgba(style.outlineColor), behind), behind) < 3) found.push(`the outline is too faint on ${said(element)}`);
      const box = element.getBoundingClientRect();
      if (box.bottom <= 0 || box.top >= innerHeight) found.push(`the focus is out of sight on ${said(element)}`);
      const place = all(CONTROLS).filter((one) => shown(one) && !one.disabled).indexOf(element);
      return { place, name: said(element), closed: element.matches("details:not([open]) > summary"), found };
    },
  };
})();
