/** `cluster-attention report A.json … --out report.html`: recordings of one machine as one page. */
import { Arguments } from './arguments';
import { readRecording, writeText } from './record';
import { writeReport } from './report';
import { UsageError } from './usage';

const HELP = `Usage: cluster-attention report RECORDING.json … --out REPORT.html

Makes one page of recordings of bench, all of the same machine. Of a case that stands in several, the
last counts.
`;

/** @returns the exit code */
export function report(parameters: readonly string[]): number {
  const options = new Arguments(parameters, ['out'], [], Infinity);
  if (options.flag('help')) {
    process.stdout.write(HELP);
    return 0;
  }
  if (options.positionals.length === 0) throw new UsageError('report expects recordings of bench');
  const path = options.writablePath('out');
  if (path === undefined) throw new UsageError('report expects --out REPORT.html');
  writeText(path, writeReport(options.positionals.map(readRecording)));
  return 0;
}
