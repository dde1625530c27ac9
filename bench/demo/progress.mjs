// A progress bar on a terminal; a line per finished task anywhere else.

import cliProgress from 'cli-progress';

export class Progress {
  #bar;
  #timer;
  #task = '';
  #started = 0;
  #stream;

  /** @param {number} total steps @param {import('node:tty').WriteStream} stream */
  constructor(total, stream) {
    this.#stream = stream;
    if (!stream.isTTY) return;
    const format = '{bar} {percentage}%  {task}';
    this.#bar = new cliProgress.SingleBar(
      { format, stream, clearOnComplete: true, hideCursor: true, barsize: 28 },
      cliProgress.Presets.shades_classic,
    );
    this.#bar.start(total, 0, { task: '' });
    this.#timer = setInterval(() => this.#refresh(), 100);
  }

  /** Names what happens now. */
  begin(task) {
    this.#task = task;
    this.#started = performance.now();
    this.#refresh();
  }

  step() {
    this.#bar?.increment();
  }

  /** What came of the task: a line of its own where there is no bar. */
  note(text) {
    if (!this.#bar) this.#stream.write(`${this.#task}: ${text}\n`);
  }

  stop() {
    clearInterval(this.#timer);
    this.#bar?.stop();
  }

  #refresh() {
    const seconds = (performance.now() - this.#started) / 1000;
    const elapsed = seconds < 1 ? '' : `, ${seconds.toFixed(0)} s`;
    this.#bar?.update({ task: `${this.#task}${elapsed}` });
  }
}
