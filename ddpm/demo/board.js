// The mask has the resolution of the image: a click paints whole pixels. `value` is a 0 or a 1 for each pixel.
const canvas = element.querySelector('canvas'), image = element.querySelector('img');
const brush = element.querySelector('input'), context = canvas.getContext('2d');
const [height, width] = [canvas.height, canvas.width];
let bits = new Uint8Array(height * width), painting = 0, last = null;
brush.max = Math.max(2, Math.ceil(Math.min(width, height) / 3));
brush.value = Math.max(1, Math.round(Math.min(width, height) / 8));
function draw() {
  context.clearRect(0, 0, width, height);
  context.fillStyle = 'rgb(70, 130, 230)';
  bits.forEach((bit, k) => { if (bit) context.fillRect(k % width, Math.floor(k / width), 1, 1); });
}
function read() {
  const text = props.value || '';
  bits = Uint8Array.from({length: height * width}, (_, k) => text[k] === '1' ? 1 : 0);
  draw();
}
function send() { props.value = bits.join(''); trigger('input'); }
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
}
function dab(x, y) {
  const radius = brush.value / 2;
  for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
    const inside = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius;
    if (inside || (Math.floor(x) === column && Math.floor(y) === row)) bits[row * width + column] = painting;
  }
}
function line(from, to) {
  const steps = Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])) || 1;
  for (let k = 0; k <= steps; k++) dab(from[0] + (to[0] - from[0]) * k / steps, from[1] + (to[1] - from[1]) * k / steps);
  draw();
}
canvas.addEventListener('pointerdown', (event) => {
  const [x, y] = last = place(event);
  // A stroke that starts on a painted pixel erases.
  painting = bits[Math.min(height - 1, Math.floor(y)) * width + Math.min(width - 1, Math.floor(x))] ? 0 : 1;
  canvas.setPointerCapture(event.pointerId);
  line(last, last);
});
canvas.addEventListener('pointermove', (event) => { if (last) { const next = place(event); line(last, next); last = next; } });
for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => { if (last) { last = null; send(); } });
// By keyboard: the arrows move a cursor, the space bar or Enter paints or erases there.
const moves = Object.entries({ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]});
let cursor = [Math.floor(width / 2), Math.floor(height / 2)];
function drawCursor() {
  draw();
  context.fillStyle = 'rgb(220, 60, 40)';
  context.fillRect(cursor[0], cursor[1], 1, 1);
}
canvas.addEventListener('keydown', (event) => {
  const move = moves.find(([key]) => key === event.key);
  const paints = event.key === ' ' || event.key === 'Enter';
  if (!move && !paints) return;
  event.preventDefault();
  if (move) cursor = [Math.min(width - 1, Math.max(0, cursor[0] + move[1][0])), Math.min(height - 1, Math.max(0, cursor[1] + move[1][1]))];
  if (paints) {
    painting = 1 - bits[cursor[1] * width + cursor[0]];
    dab(cursor[0] + 0.5, cursor[1] + 0.5);
    send();
  }
  drawCursor();
});
canvas.addEventListener('focus', () => { if (canvas.matches(':focus-visible')) drawCursor(); });
canvas.addEventListener('blur', draw);
element.querySelector('[data-do=clear]').addEventListener('click', () => { bits.fill(0); draw(); send(); });
element.querySelector('[data-do=turn]').addEventListener('click', () => { bits = bits.map((bit) => 1 - bit); draw(); send(); });
watch('value', read);
// Gradio takes every quoted word after watch( for an event.
const [shown] = Object.keys({picture: 0});
watch(shown, () => { image.src = props.picture; });
if (props.picture) image.src = props.picture;
read();
