// How often each label was predicted on each day, kept on the device and sent when there is a network; off unless switched on.

const BASE = new URL("./", import.meta.url);
const KEPT = `iris-edge ${BASE.pathname} counts`;
const MOST_COUNTS = 1000;

const read = () => ({ on: false, days: {}, pending: null, ...JSON.parse(localStorage.getItem(KEPT) || "{}") });
const write = kept => localStorage.setItem(KEPT, JSON.stringify(kept));
// One tab at a time.
const alone = act => navigator.locks.request(KEPT, act);

export const isOn = () => read().on;

// How many predictions wait to be sent.
export function waiting() {
  const { days, pending } = read();
  const counts = [...Object.values(days).flatMap(Object.values), ...(pending ? pending.counts : []).map(one => one.count)];
  return counts.reduce((sum, count) => sum + count, 0);
}

// Switched off, nothing is counted, and what was not sent is forgotten.
export const turn = on => alone(() => write(on ? { ...read(), on } : { on }));

export function add(label) {
  return alone(() => {
    const kept = read(), day = new Date().toISOString().slice(0, 10);
    if (!kept.on) return;
    kept.days[day] = { ...kept.days[day], [label]: (kept.days[day]?.[label] || 0) + 1 };
    write(kept);
  });
}

// Sends what waits under a key that stays the same until the server has said that it has it: nothing counts twice.
// Gives what to tell if it could not be sent.
export function send() {
  return alone(async () => {
    for (let kept = pack(read()); kept.on && kept.pending; kept = pack(read())) {
      write(kept);
      const body = JSON.stringify(kept.pending), headers = { "Content-Type": "application/json" };
      const answer = await fetch(new URL("telemetry", BASE), { method: "POST", body, headers }).catch(() => null);
      if (!answer) return "The server cannot be reached; they wait.";
      if (answer.status !== 204) return `The server does not take them (it answers ${answer.status}); they wait.`;
      write({ ...read(), pending: null });
    }
    return "";
  });
}

// Puts what was counted into a report, if none waits.
function pack(kept) {
  const all = Object.entries(kept.days).flatMap(
    ([day, labels]) => Object.entries(labels).map(([label, count]) => ({ day, label, count })));
  if (kept.pending || !all.length) return kept;
  const days = {};
  for (const { day, label, count } of all.slice(MOST_COUNTS)) days[day] = { ...days[day], [label]: count };
  return { ...kept, days, pending: { key: crypto.randomUUID(), counts: all.slice(0, MOST_COUNTS) } };
}
