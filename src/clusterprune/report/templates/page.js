(() => {
  "use strict";
  const dark = JSON.parse(document.getElementById("dark").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  const figures = [...document.querySelectorAll("script.figure")];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = { responsive: true, displayModeBar: false };

  // Figures come in the colours of a light page.
  const read = (source) => {
    let text = source.textContent;
    if (night.matches) for (const [from, to] of Object.entries(dark)) text = text.replaceAll(from, to);
    const figure = JSON.parse(text);
    figure.layout.font.color = colour("--ink");
    for (const [name, axis] of Object.entries(figure.layout)) {
      if (/^[xy]axis/.test(name)) Object.assign(axis, Object.fromEntries(
        ["gridcolor", "linecolor", "zerolinecolor"].map((part) => [part, colour("--line")])));
    }
    figure.layout.hoverlabel = { bgcolor: colour("--page"), bordercolor: colour("--line"), font: { color: colour("--ink") } };
    return figure;
  };
  const draw = (source) => {
    const place = document.getElementById(source.dataset.for);
    const figure = read(source);
    return Plotly.react(place, figure.data, figure.layout, config);
  };
  const all = () => Promise.all(figures.map(draw));

  for (const button of document.querySelectorAll("button[data-save]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const place = document.getElementById(button.dataset.for);
      Plotly.downloadImage(place, { format: button.dataset.save, filename: button.dataset.for, scale: 2,
        width: place.clientWidth, height: place.clientHeight });
    });
  }
  night.addEventListener("change", all);
  all().then(() => { document.documentElement.dataset.drawn = figures.length; });
})();
