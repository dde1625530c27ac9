#!/usr/bin/env node
/** `npx cluster-attention …`: what a person runs before trusting the package with a service. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Arguments } from './bench/arguments';
import { print, runCommand } from './bench/terminal';
import { UsageError } from './bench/usage';
import type { CudaDevice, CudaInfo } from './info';

const HELP = `Usage: cluster-attention <command>

Commands:
  info        version, instruction sets, threads, build and CUDA of this installation
  bench       time, error and memory of every method on this machine
  tune        the fastest setting within an error, for your inputs
  compare     two recordings of bench: what became faster or slower
  report      recordings of bench as one HTML page

--help after a command, or help before it, lists its options.

Options:
  --help      this text
  --version   version of the package
`;

const INFO_HELP = `Usage: cluster-attention info

Prints version, instruction sets, threads, build and CUDA of this installation.
`;

function packageVersion(): string {
  const file = join(__dirname, '..', 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

function describeCuda({ reason, runtime, driver, targets }: CudaInfo): string {
  const version = runtime === undefined ? '' : `runtime ${runtime} for ${targets.join(', ')}`;
  const known = driver === undefined ? '' : `driver ${driver}`;
  return [reason, version, known].filter(Boolean).join('; ');
}

function describeDevice(device: CudaDevice): string {
  const { name, computeCapability, memory, reason } = device;
  const size = `${(memory / 2 ** 30).toFixed(1)} GiB`;
  return `${name}, ${computeCapability}, ${size}${reason === undefined ? '' : `: ${reason}`}`;
}

function printInfo(): void {
  const library = require('./info') as typeof import('./info'); // here: it loads the addon
  const { instructionSets, threads, build, cuda, version } = library.info();
  const lines = [
    ['version', version],
    ['node', `${process.version} ${process.platform}-${process.arch}`],
    ['build', build],
    ['instruction sets', `${instructionSets.found.join(', ')} (using ${instructionSets.used})`],
    ['threads', String(threads)],
    ['cuda', describeCuda(cuda)],
    ...cuda.devices.map((device) => [`cuda:${device.index}`, describeDevice(device)]),
  ];
  for (const [name, value] of lines) print(`${name!.padEnd(18)}${value}`);
}

function info(parameters: readonly string[]): number {
  const options = new Arguments(parameters, [], []);
  if (options.flag('help')) process.stdout.write(INFO_HELP);
  else printInfo();
  return 0;
}

const refused = (problem: string): UsageError =>
  new UsageError(`${problem}; see cluster-attention --help`);

/** What stands alone. */
function alone(surplus: readonly string[], run: () => void): number {
  if (surplus.length > 0) throw refused(`unexpected "${surplus[0]}"`);
  run();
  return 0;
}

/** Modules are loaded where they are needed: most of them load the addon. */
async function main(command: string | undefined, parameters: readonly string[]): Promise<number> {
  switch (command) {
    case 'info':
      return info(parameters);
    case 'bench':
      return (require('./bench/bench') as typeof import('./bench/bench')).bench(parameters);
    case 'tune':
      return (require('./bench/tune') as typeof import('./bench/tune')).tune(parameters);
    case 'compare':
      return (require('./bench/compare') as typeof import('./bench/compare')).compare(parameters);
    case 'report':
      return (require('./bench/report-command') as typeof import('./bench/report-command')).report(
        parameters,
      );
    case '--version':
    case '-v':
      return alone(parameters, () => print(packageVersion()));
    case 'help':
      if (parameters.length === 1) return main(parameters[0], ['--help']);
      return alone(parameters, () => process.stdout.write(HELP));
    case '--help':
    case '-h':
      return alone(parameters, () => process.stdout.write(HELP));
    default:
      throw refused(command === undefined ? 'no command' : `unknown command "${command}"`);
  }
}

void runCommand('cluster-attention', () => main(process.argv[2], process.argv.slice(3)));
