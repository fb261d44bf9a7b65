// A plane with places on it, as a canvas: what lies where, which is meant, and what a line encloses.

const MARGIN = 0.92; // of the canvas that the plane takes at first
const NEAR = 14; // pixels from a place at which it is meant still
const MOST_ZOOM = 40;

export class Plane {
  constructor(canvas) {
    this.canvas = canvas;
    this.places = [];
    this.reset();
  }

  reset() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 }); // what is in the middle
  }

  get half() {
    return (Math.min(this.canvas.clientWidth, this.canvas.clientHeight) / 2) * MARGIN * this.zoom;
  }

  onScreen({ x, y }) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return [width / 2 + (x - this.x) * this.half, height / 2 - (y - this.y) * this.half];
  }

  fromScreen([left, top]) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return { x: this.x + (left - width / 2) / this.half, y: this.y - (top - height / 2) / this.half };
  }

  // Zooms so that what is at a point of the screen stays there.
  zoomAt(point, factor) {
    const before = this.fromScreen(point);
    this.zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const after = this.fromScreen(point);
    this.x += before.x - after.x;
    this.y += before.y - after.y;
    if (this.zoom === 1) this.reset();
  }

  nearest(point) {
    return this.least((place) => {
      const [left, top] = this.onScreen(place);
      const apart = Math.hypot(left - point[0], top - point[1]);
      return apart <= NEAR ? apart : Infinity;
    });
  }

  // The next place from one in a direction, e.g. [0, 1] for up; those aside count as farther.
  next(from, [right, up]) {
    return this.least((place) => {
      const x = place.x - from.x, y = place.y - from.y;
      const along = x * right + y * up, aside = Math.abs(x * up - y * right);
      return along > 0 && aside <= along ? along + 2 * aside : Infinity;
    });
  }

  least(measure) {
    let found = null, least = Infinity;
    for (const place of this.places) {
      const measured = measure(place);
      if (measured < least) [found, least] = [place, measured];
    }
    return found;
  }

  within(line) {
    return this.places.filter((place) => isInside(this.onScreen(place), line));
  }

  // ``look`` tells of each place its colour, opacity, radius in pixels and, if it has one, its ring.
  draw(look, line, ink) {
    const { canvas } = this, scale = devicePixelRatio;
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    for (const place of this.places) this.drawPlace(context, this.onScreen(place), look(place));
    if (line.length > 1) drawLine(context, line, ink);
  }

  drawPlace(context, [left, top], { colour, opacity, radius, ring }) {
    context.globalAlpha = opacity;
    context.fillStyle = colour;
    context.beginPath();
    context.arc(left, top, radius, 0, 2 * Math.PI);
    context.fill();
    if (!ring) return;
    context.globalAlpha = 1;
    context.strokeStyle = ring;
    context.lineWidth = 2;
    context.beginPath();
    context.arc(left, top, radius + 3, 0, 2 * Math.PI);
    context.stroke();
  }
}

function drawLine(context, line, ink) {
  context.globalAlpha = 1;
  context.strokeStyle = ink;
  context.lineWidth = 1.5;
  context.beginPath();
  for (const [left, top] of line) context.lineTo(left, top);
  context.closePath();
  context.stroke();
  context.globalAlpha = 0.08;
  context.fillStyle = ink;
  context.fill();
}

// A ray to the right crosses the line an odd number of times.
function isInside([x, y], line) {
  let inside = false;
  for (let at = 0, before = line.length - 1; at < line.length; before = at, at += 1) {
    const [x1, y1] = line[at], [x2, y2] = line[before];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  }
  return inside;
}
