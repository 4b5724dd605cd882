// Counts of predictions by day and label. The device stores them and sends them when it has a network. They are off by default.

const BASE = new URL("./", import.meta.url);
const STORAGE_KEY = `iris-edge ${BASE.pathname} counts`;
const MAX_COUNTS = 1000;

const read = () => ({ on: false, days: {}, pending: null, ...JSON.parse(localStorage.getItem(STORAGE_KEY) || "{}") });
const write = stored => localStorage.setItem(STORAGE_KEY, JSON.stringify(stored));
// Runs a function in one tab at a time.
const withLock = action => navigator.locks.request(STORAGE_KEY, action);

export const isOn = () => read().on;

// Returns the number of predictions that are not sent yet.
export function waiting() {
  const { days, pending } = read();
  const counts = [...Object.values(days).flatMap(Object.values), ...(pending ? pending.counts : []).map(entry => entry.count)];
  return counts.reduce((sum, count) => sum + count, 0);
}

// Switches the counts on, or switches them off and deletes those that are not sent yet.
export const turn = on => withLock(() => write(on ? { ...read(), on } : { on }));

export function add(label) {
  return withLock(() => {
    const stored = read(), day = new Date().toISOString().slice(0, 10);
    if (!stored.on) return;
    stored.days[day] = { ...stored.days[day], [label]: (stored.days[day]?.[label] || 0) + 1 };
    write(stored);
  });
}

// Sends the counts in reports. A report has the same key until the server acknowledges it, so that the server counts it once.
// Returns an empty string, or a message for the user if the server did not accept a report.
export function send() {
  return withLock(async () => {
    for (let stored = pack(read()); stored.on && stored.pending; stored = pack(read())) {
      write(stored);
      const body = JSON.stringify(stored.pending), headers = { "Content-Type": "application/json" };
      const response = await fetch(new URL("telemetry", BASE), { method: "POST", body, headers }).catch(() => null);
      if (!response) return "The server cannot be reached. The counts wait.";
      if (response.status !== 204) return `The server rejected the counts with status ${response.status}. They wait.`;
      write({ ...read(), pending: null });
    }
    return "";
  });
}

// Moves counts into a report, unless a report is already pending.
function pack(stored) {
  const all = Object.entries(stored.days).flatMap(
    ([day, labels]) => Object.entries(labels).map(([label, count]) => ({ day, label, count })));
  if (stored.pending || !all.length) return stored;
  const days = {};
  for (const { day, label, count } of all.slice(MAX_COUNTS)) days[day] = { ...days[day], [label]: count };
  return { ...stored, days, pending: { key: crypto.randomUUID(), counts: all.slice(0, MAX_COUNTS) } };
}
