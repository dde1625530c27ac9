/** `cluster-attention bench`: speed and error of every method, side by side. */
import { Arguments } from './arguments';
import { planGroups } from './plan';
import { conclude, exitCodeOf, measure, quoteCommand } from './run';
import {
  FLAGS,
  METHOD_OPTIONS,
  readSelection,
  readSettings,
  RUN_OPTIONS,
  SOURCE_OPTIONS,
} from './selection';

/** Shared with `tune`; `length` says what --length is. */
export const helpInputs = (length: string): string => `Inputs:
${length}
  --queries L           queries that attend to them (as many)
  --batch B --heads H --dim D --value-dim E     (1, 8, 64, D)
  --distribution NAME   gaussian (no groups: the worst case), mixture, local (default gaussian)
  --seed S              of synthetic inputs and of the methods (0)
  --input FILE          a safetensors file with your query, key and value instead
  --names Q,K,V         names of its tensors (query,key,value)`;

export const HELP_RUN = `Measuring:
  --device D            cpu, auto, cuda or cuda:0 (cpu)
  --precision P         float32 or bfloat16 (float32)
  --grad                forward and backward
  --rounds R            samples of each case, taken in turns (9)
  --budget SECONDS      for the samples of one case; three are taken in any case (10)
  --rows R              rows whose error is computed in double precision (64)
  --json FILE           the results, also after Ctrl-C
  --report FILE         the same as an HTML page with charts`;

const HELP = `Usage: cluster-attention bench [options]

Measures every method in a fresh process, after checking its result against double precision, and
prints time, speed-up over exact attention, error and memory. Lists make every combination.

${helpInputs('  --length N,…          tokens (1024,4096)')}

Methods:
  --methods M,…         exact,clustered,improved,centroid,cast (all)
  --clusters C,…        of clustered and improved (100)
  --topk K,…            of improved (32)
  --grouping G,…        hamming,euclidean (hamming)
  --threshold T,…       of hashes: normal,data (normal)
  --bits B,… --iterations I,…                   (63; 10, euclidean 4)
  --centroids M,…       of centroid attention (64)
  --cluster-size K,…    of CAST (256)
  --exact-up-to N       longer inputs are not given to exact attention (16384)

${HELP_RUN}
  --threads T,…         (all)
`;

/** @returns the exit code */
export async function bench(parameters: readonly string[]): Promise<number> {
  const options = new Arguments(
    parameters,
    [...SOURCE_OPTIONS, ...METHOD_OPTIONS, ...RUN_OPTIONS],
    FLAGS,
  );
  if (options.flag('help')) {
    process.stdout.write(HELP);
    return 0;
  }
  const recording = await measure({
    groups: planGroups(readSelection(options)),
    settings: readSettings(options),
    destinations: {
      json: options.writablePath('json'),
      report: options.writablePath('report'),
    },
    command: quoteCommand(['npx', 'cluster-attention', 'bench', ...parameters]),
  });
  conclude(recording);
  return exitCodeOf(recording);
}
