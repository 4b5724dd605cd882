// Counts of predictions by label and day. They are stored on the device and sent when there is a network. Off by default.

const BASE = new URL("./", import.meta.url);
const KEPT = `iris-edge ${BASE.pathname} counts`;
const MAX_COUNTS = 1000;

const read = () => ({ on: false, days: {}, pending: null, ...JSON.parse(localStorage.getItem(KEPT) || "{}") });
const write = kept => localStorage.setItem(KEPT, JSON.stringify(kept));
// Runs one action at a time over all tabs.
const alone = act => navigator.locks.request(KEPT, act);

export const isOn = () => read().on;

// Returns the number of predictions that wait to be sent.
export function waiting() {
  const { days, pending } = read();
  const counts = [...Object.values(days).flatMap(Object.values), ...(pending ? pending.counts : []).map(one => one.count)];
  return counts.reduce((sum, count) => sum + count, 0);
}

// Switching off stops the counting and discards unsent counts.
export const turn = on => alone(() => write(on ? { ...read(), on } : { on }));

export function add(label) {
  return alone(() => {
    const kept = read(), day = new Date().toISOString().slice(0, 10);
    if (!kept.on) return;
    kept.days[day] = { ...kept.days[day], [label]: (kept.days[day]?.[label] || 0) + 1 };
    write(kept);
  });
}

// Sends the waiting counts under a key that stays the same until the server confirms them, so that nothing counts twice.
// Returns a message if the counts could not be sent.
export function send() {
  return alone(async () => {
    for (let kept = pack(read()); kept.on && kept.pending; kept = pack(read())) {
      write(kept);
      const body = JSON.stringify(kept.pending), headers = { "Content-Type": "application/json" };
      const answer = await fetch(new URL("telemetry", BASE), { method: "POST", body, headers }).catch(() => null);
      if (!answer) return "The server cannot be reached. The counts wait.";
      if (answer.status !== 204) return `The server rejected the counts with status ${answer.status}. They wait.`;
      write({ ...read(), pending: null });
    }
    return "";
  });
}

// Moves the counts into a report, if none is waiting.
function pack(kept) {
  const all = Object.entries(kept.days).flatMap(
    ([day, labels]) => Object.entries(labels).map(([label, count]) => ({ day, label, count })));
  if (kept.pending || !all.length) return kept;
  const days = {};
  for (const { day, label, count } of all.slice(MAX_COUNTS)) days[day] = { ...days[day], [label]: count };
  return { ...kept, days, pending: { key: crypto.randomUUID(), counts: all.slice(0, MAX_COUNTS) } };
}
