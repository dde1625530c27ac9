/** Measures groups of cases for a person at a terminal: progress, tables, files, Ctrl-C. */
import { Coordinator } from './coordinator';
import type { Group, Settings } from './plan';
import { Progress } from './progress';
import { type Recording, writeRecording, writeText } from './record';
import { writeReport } from './report';
import { formatGroup, legend } from './table';
import { interruptible, print } from './terminal';

/** Where results go; paths that were found to be writable. */
export interface Destinations {
  readonly json: string | undefined;
  readonly report: string | undefined;
}

export interface Run {
  readonly groups: readonly Group[];
  readonly settings: Settings;
  readonly destinations: Destinations;
  /** What was typed, for the record. */
  readonly command: string;
}

/** As a shell would need it. */
export function quoteCommand(words: readonly string[]): string {
  return words
    .map((word) => (/^[\w./:,=@+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`))
    .join(' ');
}

function describeMachineLine({ machine }: Recording): string {
  const { processor, cores, instructionSet, package: version, node, commit } = machine;
  const build = commit === undefined ? version : `${version} (${commit})`;
  return `${processor}, ${cores} cores, ${instructionSet}; cluster-attention ${build}, Node ${node}`;
}

function write({ json, report }: Destinations, recording: Recording): void {
  if (json !== undefined) writeRecording(json, recording);
  if (report !== undefined) writeText(report, writeReport([recording]));
}

/**
 * Runs the groups, printing each when it is done. The files are rewritten after every group, so
 * that even a run that is killed leaves what it has; Ctrl-C ends it in good order.
 */
export async function measure(run: Run): Promise<Recording> {
  const { groups, settings, destinations, command } = run;
  const progress = new Progress(process.stderr);
  let shown = false;
  const coordinator = new Coordinator(groups, settings, command, {
    progress: (share, what) => progress.show(share, what),
    results(results, soFar) {
      progress.clear();
      write(destinations, soFar);
      if (!shown) print(describeMachineLine(soFar));
      shown = true;
      if (results.length > 0) print(`\n${formatGroup(results)}`);
    },
  });
  try {
    const recording = await interruptible(
      () => coordinator.run(),
      () => coordinator.interrupt(),
    );
    write(destinations, recording);
    return recording;
  } finally {
    progress.clear();
  }
}

/** What follows the tables: the meaning of the columns, and the state of an interrupted run. */
export function conclude({ complete, results }: Recording): void {
  if (results.length > 0) print(`\n${legend(results)}`);
  if (!complete) print('Interrupted: what had been measured until then is above.');
}

/** 0 when everything was measured, 130 after Ctrl-C, 1 when a case failed or was wrong. */
export function exitCodeOf({ complete, results }: Recording): number {
  if (!complete) return 130;
  return results.some(({ status }) => status === 'wrong' || status === 'failed') ? 1 : 0;
}
