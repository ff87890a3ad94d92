
// Several contact sheets become one with a slider and buttons; without scripts they stand below each other.
const section = document.getElementById("sheets");
const grids = section ? [...section.querySelectorAll("figure")] : [];
if (grids.length > 1) {
  const last = grids.length - 1;
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: last, value: last });
  slider.setAttribute("aria-label", "Epoch");
  const label = document.createElement("output");
  const button = (text, name, step) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.setAttribute("aria-label", name);
    made.addEventListener("click", () => {
      slider.value = +slider.value + step;
      show();
    });
    return made;
  };
  const [back, forward] = [button("‹", "Previous epoch", -1), button("›", "Next epoch", 1)];
  const show = () => {
    const at = +slider.value;
    grids.forEach((figure, i) => figure.classList.toggle("shown", i === at));
    label.textContent = "Epoch " + grids[at].dataset.epoch;
    slider.setAttribute("aria-valuetext", label.textContent);
    back.disabled = at === 0;
    forward.disabled = at === last;
  };
  slider.addEventListener("input", show);
  const bar = Object.assign(document.createElement("div"), { className: "scrub" });
  bar.append(label, back, slider, forward);
  section.insertBefore(bar, grids[0]);
  section.classList.add("scrubbed");
  show();
}
