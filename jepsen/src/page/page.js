// Says what happened at the time under the pointer. The page is whole without it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const figure = document.querySelector(".picture");
  const svg = figure.querySelector("svg");
  const cross = svg.querySelector(".cross");
  const note = figure.querySelector(".note");
  const show = (visible) => [cross, note].forEach((one) => { one.style.visibility = visible ? "visible" : "hidden"; });
  const latency = (seconds) =>
    seconds >= 1 ? seconds.toFixed(1) + " s" : (seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0) + " ms";

  const describe = (at) => {
    const bin = data.bins[Math.min(data.bins.length - 1, Math.floor(at / data.width))];
    const [ok, fail, info, reads, refused, p50, p99] = bin;
    const rate = (count) => Math.round(count / data.width);
    const lines = [at.toFixed(1) + " s"];
    lines.push(`writes/s: ${rate(ok)} acknowledged` + (fail ? `, ${rate(fail)} refused` : "") + (info ? `, ${rate(info)} unknown` : ""));
    lines.push(`reads/s: ${rate(reads)}` + (refused ? `, ${rate(refused)} not answered` : ""));
    if (p50 !== null) lines.push(`latency: p50 ${latency(p50)}, p99 ${latency(p99)}`);
    for (const [name, begun, ended, effective, detail] of data.faults) {
      if (begun <= at && at <= ended) lines.push(`${effective ? "●" : "○"} ${name}${detail ? ": " + detail : ""}`);
    }
    const leads = new Map();
    for (const [group, term, node, first, last] of data.leaders) {
      if (first <= at && at <= last) leads.set(group, `${group}: node ${node} (term ${term})`);
    }
    if (leads.size) lines.push("leaders of " + [...leads.values()].join(", "));
    return lines.join("\n");
  };

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * data.size;
    const at = (x - data.left) / (data.right - data.left) * data.seconds;
    if (at < 0 || at > data.seconds) return show(false);
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    note.textContent = describe(at);
    const frame = figure.getBoundingClientRect();
    const room = frame.width - (event.clientX - frame.left);
    const left = event.clientX - frame.left + figure.scrollLeft;
    note.style.left = (room < 370 ? left - note.offsetWidth - 14 : left + 14) + "px";
    note.style.top = Math.max(8, event.clientY - frame.top - 30) + "px";
    show(true);
  });
  svg.addEventListener("pointerleave", () => show(false));
})();
