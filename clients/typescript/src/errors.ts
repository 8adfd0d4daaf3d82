/**
 * Every error of the package, one tree.
 *
 *     ExchangeError
 *     ├── InvalidMessage              a name, an id, a payload or a frame breaks a rule of the protocol
 *     │   └── LimitExceeded           ... because it is larger or deeper than a named limit
 *     ├── AddressError                a URL that no transport takes, or that cannot be listened at
 *     ├── LinkError                   a link could not be made or was lost: *we* concluded so
 *     └── RequestError                a request ended without its answer: .code, .reason, .at, .delivered
 *         ├── Unhandled               nobody handles the name, or nobody has that id
 *         ├── DeadlineExceeded        no answer in the time given
 *         ├── Unavailable             the way was lost; .delivered is false (surely not) or undefined (unknown)
 *         ├── Cancelled               the caller withdrew it
 *         ├── Refused                 a rule, a bound, or the handler said no
 *         └── HandlerFailed           the handler threw: *the peer* said so
 *
 * @module
 */

/** The status codes of gRPC, with their numbers. */
export const Code = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;
export type Code = (typeof Code)[keyof typeof Code];

const NAMES = new Map<number, string>(Object.entries(Code).map(([name, code]) => [code, name]));

/** The name of a status code; of one that does not exist, that of `UNKNOWN`. */
export function codeName(code: number): string {
  return NAMES.get(code) ?? "UNKNOWN";
}

/** The root: whatever this package throws on purpose. */
export class ExchangeError extends Error {}

/** A name, an id, a payload or a frame breaks a rule of the protocol. */
export class InvalidMessage extends ExchangeError {}

/** Something is larger, longer or deeper than the limit its text names. */
export class LimitExceeded extends InvalidMessage {}

/** A URL that no transport takes, or that cannot be listened at or dialled. */
export class AddressError extends ExchangeError {}

/** A link could not be made, or was lost. */
export class LinkError extends ExchangeError {}

/** What is known of an error besides its text. */
export interface ErrorDetails {
  code?: Code;
  /** A fixed upper-case word for programs. */
  reason?: string;
  /** The id of the exchange that concluded it. */
  at?: string;
  /** Whether a handler may have seen the request: false (surely not) or undefined (unknown). */
  delivered?: false | undefined;
  cause?: unknown;
}

/** A request ended without its answer. */
export class RequestError extends ExchangeError {
  readonly code: Code;
  readonly reason: string;
  readonly at: string;
  readonly delivered: false | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = details.code ?? Code.UNKNOWN;
    this.reason = details.reason ?? codeName(this.code);
    this.at = details.at ?? "";
    this.delivered = details.delivered;
  }
}

/** Nobody within reach handles the name, or nobody within reach has that exchange id. */
export class Unhandled extends RequestError {
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { code: Code.UNIMPLEMENTED, reason: "UNHANDLED", ...details });
  }
}

/** The time given was over before the answer came. */
export class DeadlineExceeded extends RequestError {
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { code: Code.DEADLINE_EXCEEDED, ...details });
  }
}

/** The way to the handler was lost, or could not be found out in time. */
export class Unavailable extends RequestError {
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { code: Code.UNAVAILABLE, ...details });
  }
}

/** The request was withdrawn before it was answered. */
export class Cancelled extends RequestError {
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { code: Code.CANCELLED, ...details });
  }
}

/** Whoever took the message refused it. A handler throws it to say no, with a code and a reason of its own. */
export class Refused extends RequestError {
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { code: Code.INVALID_ARGUMENT, reason: "REFUSED", ...details });
  }
}

/** The handler threw, or its answer could not be sent. Details are in the log of `at`. */
export class HandlerFailed extends RequestError {
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { code: Code.INTERNAL, reason: "HANDLER_FAILED", ...details });
  }
}

const TREE = {
  ExchangeError,
  InvalidMessage,
  LimitExceeded,
  AddressError,
  LinkError,
  RequestError,
  Unhandled,
  DeadlineExceeded,
  Unavailable,
  Cancelled,
  Refused,
  HandlerFailed,
};
// Spelt out, for bundlers give classes other names.
for (const [name, { prototype }] of Object.entries(TREE)) {
  Object.defineProperty(prototype, "name", { value: name, writable: true, configurable: true });
}

const BY_CODE: ReadonlyMap<Code, typeof RequestError> = new Map<Code, typeof RequestError>([
  [Code.UNIMPLEMENTED, Unhandled],
  [Code.DEADLINE_EXCEEDED, DeadlineExceeded],
  [Code.UNAVAILABLE, Unavailable],
  [Code.CANCELLED, Cancelled],
  [Code.INTERNAL, HandlerFailed],
  [Code.UNKNOWN, RequestError],
]);

/** The error of the tree that stands for a status. */
export function requestError(code: Code, message: string, details: Omit<ErrorDetails, "code"> = {}): RequestError {
  const kind = BY_CODE.get(code) ?? Refused;
  return new kind(message, { ...details, code });
}

/** What whoever sent a message hears when it broke a rule. */
export function refused(error: InvalidMessage): RequestError {
  return error instanceof LimitExceeded
    ? requestError(Code.OUT_OF_RANGE, error.message, { reason: "LIMIT_EXCEEDED", delivered: false })
    : requestError(Code.INVALID_ARGUMENT, error.message, { reason: "INVALID_MESSAGE", delivered: false });
}
