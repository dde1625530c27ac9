/** From options to cases: which are measured, in which groups. */
import type { Distribution } from './distributions';
import type { InputFile } from './inputs';
import { methodOf, type MethodName } from './methods';
import { type Command, OWN_PROCESS } from './participant';
import type { Case, Parameters, Problem, Status } from './record';

/** A case, and who measures it or why nobody does. */
export interface Entry {
  readonly case: Case;
  readonly command?: Command;
  readonly absent?: { readonly status: Status; readonly reason: string };
}

/** Cases on the same inputs under the same settings: they are interleaved and compared. */
export interface Group {
  readonly problem: Problem;
  /** A file, or a distribution to draw from. */
  readonly source: InputFile | Distribution;
  readonly entries: readonly Entry[];
}

/** The settings of a run beyond its cases. */
export interface Settings {
  readonly rounds: number;
  /** Seconds that the samples of one case may take; three rounds are made in any case. */
  readonly budget: number;
  readonly rows: number;
  /** k of the recall, the same for all cases. */
  readonly recallKeys: number;
  readonly seed: number;
}

/** Which cases: the product of the lists. */
export interface Selection {
  readonly problems: readonly Problem[];
  readonly source: InputFile | Distribution;
  /** What the source is called in the results. */
  readonly data: string;
  readonly methods: readonly MethodName[];
  readonly parameters: {
    readonly [Name in keyof Parameters]-?: readonly Parameters[Name][];
  };
  readonly threads: readonly number[];
  readonly device: string;
  readonly precision: 'float32' | 'bfloat16';
  readonly gradient: boolean;
  /** Longest key length at which exact attention is measured. */
  readonly exactUpTo: number;
}

/** Every combination of one value per list; a value that is undefined leaves its name out. */
function combinations(lists: readonly (readonly [string, readonly unknown[]])[]): Parameters[] {
  return lists.reduce<Record<string, unknown>[]>(
    (all, [name, values]) =>
      all.flatMap((one) =>
        values.map((value) => (value === undefined ? one : { ...one, [name]: value })),
      ),
    [{}],
  ) as Parameters[];
}

/** Drops what says nothing: thresholds and bits belong to hashes, clusters of CAST to its size. */
function settle(method: MethodName, parameters: Parameters, { queryLength }: Problem): Parameters {
  const { threshold, bits, clusterSize, ...others } = parameters;
  if (method === 'cast') {
    const size = clusterSize ?? 256;
    return { clusters: Math.ceil(queryLength / size), clusterSize: size };
  }
  if (parameters.grouping === 'euclidean') return others;
  return {
    ...others,
    ...(threshold !== undefined && { threshold }),
    ...(bits !== undefined && { bits }),
  };
}

function parametersOf(method: MethodName, problem: Problem, selection: Selection): Parameters[] {
  const names = methodOf(method).parameters;
  const all = combinations(names.map((name) => [name, selection.parameters[name]] as const)).map(
    (parameters) => settle(method, parameters, problem),
  );
  const different = new Map(all.map((parameters) => [JSON.stringify(parameters), parameters]));
  return Array.from(different.values());
}

function absence(method: MethodName, problem: Problem, { exactUpTo }: Selection): Entry['absent'] {
  if (method === 'exact' && problem.keyLength > exactUpTo) {
    const reason = `longer than --exact-up-to ${exactUpTo}`;
    return { status: 'skipped', reason };
  }
  if (method === 'cast' && problem.queryLength !== problem.keyLength) {
    return { status: 'skipped', reason: 'CAST is self-attention only' };
  }
  return undefined;
}

/** The groups of a selection, methods in the order given. */
export function planGroups(selection: Selection): Group[] {
  const { problems, source, data, methods, threads, device, precision, gradient } = selection;
  return problems.flatMap((problem) =>
    threads.map((count) => {
      const entries = methods.flatMap((method) =>
        parametersOf(method, problem, selection).map((parameters): Entry => {
          const absent = absence(method, problem, selection);
          const one: Case = {
            implementation: 'cluster-attention',
            method,
            parameters,
            problem,
            threads: count,
            device,
            precision,
            gradient,
            data,
          };
          return absent ? { case: one, absent } : { case: one, command: OWN_PROCESS };
        }),
      );
      return { problem, source, entries };
    }),
  );
}
