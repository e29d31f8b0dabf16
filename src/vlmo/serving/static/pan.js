// A map that is moved and zoomed by dragging, wheel, pinch and keys on the service's page.

const SIDE = 1000; // of what the places from 0 to 1 are drawn on, in pixels
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 80; // pixels
const STILL = 6; // pixels that a pointer may move in a click

// `view` holds an element of class "world" with buttons and names, whose places are in data-x and data-y. Of the buttons
// Tab reaches the one in the middle, and arrow keys the others. `place` is to be called when they have changed.
export function explore(view, { keys = view } = {}) {
  const world = view.querySelector(".world");
  const pointers = new Map();
  let buttons = [];
  let [x, y, zoom, least, moved, size] = [0, 0, 1, 1, 0, ""];

  function draw() {
    zoom = Math.min(Math.max(zoom, least / 2), 40);
    world.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    world.style.setProperty("--k", Math.max(0.35, Math.min(zoom, 2.5)) ** 0.5 / zoom);
    if (world.contains(document.activeElement) || !buttons.length) return;
    const [left, top] = [(view.clientWidth / 2 - x) / zoom / SIDE, (view.clientHeight / 2 - y) / zoom / SIDE];
    enterAt(nearest((across, down) => Math.hypot(across, down), { x: left, y: top }));
  }
  function enterAt(button) {
    for (const each of world.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    button.tabIndex = 0;
  }
  // The button for which `far` is least, a function of what lies between it and a place.
  function nearest(far, from) {
    let best = null;
    let least = Infinity;
    for (const each of buttons) {
      const distance = far(each.dataset.x - from.x, each.dataset.y - from.y);
      if (distance < least) [best, least] = [each, distance];
    }
    return best;
  }
  function showAll() {
    least = zoom = (0.86 * Math.min(view.clientWidth, view.clientHeight)) / SIDE;
    [x, y] = [(view.clientWidth - SIDE * zoom) / 2, (view.clientHeight - SIDE * zoom) / 2];
    draw();
  }
  function zoomAt(factor, left = view.clientWidth / 2, top = view.clientHeight / 2) {
    const before = zoom;
    zoom *= factor;
    draw();
    [x, y] = [left - ((left - x) * zoom) / before, top - ((top - y) * zoom) / before];
    draw();
  }
  // Brings a place to the middle, at least so many times as large as at the start.
  function show(place, times) {
    zoom = Math.max(zoom, times * least);
    [x, y] = [view.clientWidth / 2 - place.x * SIDE * zoom, view.clientHeight / 2 - place.y * SIDE * zoom];
    draw();
  }
  function place() {
    buttons = [...world.querySelectorAll("button")];
    for (const each of world.children) {
      each.style.left = `${each.dataset.x * SIDE}px`;
      each.style.top = `${each.dataset.y * SIDE}px`;
      each.tabIndex = -1;
    }
    showAll();
  }

  view.addEventListener("scroll", () => view.scrollTo(0, 0)); // where a browser brings what has the focus into view
  view.addEventListener("focusin", ({ target }) => {
    if (!buttons.includes(target)) return;
    enterAt(target);
    if (target.matches(":focus-visible")) show(target.dataset, 3);
  });
  view.addEventListener("click", (event) => event.detail && moved > STILL && event.stopPropagation(), true);
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = view.getBoundingClientRect();
    zoomAt(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  view.addEventListener("pointerdown", (event) => {
    if (!pointers.size) moved = 0;
    pointers.set(event.pointerId, event);
  });
  window.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const [across, down] = [event.clientX - last.clientX, event.clientY - last.clientY];
    const other = [...pointers.values()].find((each) => each !== last);
    const far = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY) || 1;
    [x, y, moved] = [x + across / pointers.size, y + down / pointers.size, moved + Math.abs(across) + Math.abs(down)];
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) zoomAt(far(event) / far(last));
    else draw();
  });
  for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, (event) => pointers.delete(event.pointerId));
  keys.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const step = STEPS[event.key];
    const factor = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
    if (!step && !factor && event.key !== "0") return;
    event.preventDefault();
    if (factor) zoomAt(factor);
    else if (!step) showAll();
    else if (buttons.includes(event.target)) {
      const far = (across, down) => {
        const [ahead, aside] = [across * step[0] + down * step[1], Math.abs(across * step[1] + down * step[0])];
        return ahead > 0 && aside <= ahead ? ahead + aside : Infinity;
      };
      nearest(far, event.target.dataset)?.focus({ preventScroll: true });
    } else {
      [x, y] = [x - STEP * step[0], y - STEP * step[1]];
      draw();
    }
  });
  new ResizeObserver(() => {
    const now = `${view.clientWidth} ${view.clientHeight}`;
    if (!view.clientWidth || now === size) return; // it is hidden, or as it was
    size = now;
    showAll();
  }).observe(view);
  return { place, show };
}
