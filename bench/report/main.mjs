// What the report does in a browser: the legend and the choices, and the charts below them.

import { charts } from './charts.mjs';

const data = JSON.parse(document.querySelector('#data').textContent);

/** Which series are shown, and which setting. */
const state = { hidden: new Set(), choice: {} };

const colors = new Map(data.series.map((name, i) => [name, `var(--series-${(i % 12) + 1})`]));

/** The settings that the page can choose from, with their values in order. */
const CHOICES = [
  { name: 'data', label: 'Data' },
  { name: 'mode', label: 'Computed' },
  { name: 'threads', label: 'Threads' },
  { name: 'length', label: 'Length' },
];

const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

const formatValue = (value) => (typeof value === 'number' ? value.toLocaleString('en') : value);

/** The last value that has a comparison with exact attention: the longest, the most threads. */
function preferred(name, values) {
  const compared = values.filter((value) =>
    data.points.some((point) => point[name] === value && point.approximates && point.speedup),
  );
  return (name === 'data' || name === 'mode' ? values[0] : compared.at(-1)) ?? values.at(-1);
}

function addChoices(place) {
  for (const { name, label } of CHOICES) {
    const values = [...new Set(data.points.map((point) => point[name]))];
    if (typeof values[0] === 'number') values.sort((a, b) => a - b);
    state.choice[name] = preferred(name, values);
    if (values.length < 2) continue;
    const select = element('select', { name });
    for (const value of values) {
      const selected = value === state.choice[name];
      select.append(element('option', { value, textContent: formatValue(value), selected }));
    }
    select.addEventListener('change', () => {
      state.choice[name] = values[select.selectedIndex];
      draw();
    });
    const box = element('label', { textContent: label });
    box.append(select);
    place.append(box);
  }
}

function addLegend(place) {
  for (const name of data.series) {
    const button = element('button', { type: 'button', textContent: name });
    button.style.setProperty('--color', colors.get(name));
    button.setAttribute('aria-pressed', 'true');
    button.addEventListener('click', () => {
      const shown = state.hidden.delete(name);
      if (!shown) state.hidden.add(name);
      button.setAttribute('aria-pressed', String(shown));
      draw();
    });
    place.append(button);
  }
}

function draw() {
  const points = data.points.filter((point) => !state.hidden.has(point.series));
  for (const { id, make } of charts) {
    const figure = document.getElementById(id);
    const place = figure.querySelector('.plot');
    const width = place.clientWidth;
    const content = make({ points, choice: state.choice, width, colors });
    figure.hidden = content === undefined;
    place.replaceChildren(...(content ?? []));
  }
}

addLegend(document.querySelector('.legend'));
addChoices(document.querySelector('.choices'));
draw();
let drawnWidth = innerWidth;
addEventListener('resize', () => {
  if (innerWidth === drawnWidth) return; // a phone's address bar changes the height alone
  drawnWidth = innerWidth;
  draw();
});
