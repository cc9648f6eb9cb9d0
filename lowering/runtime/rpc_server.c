/* A server of TVM's RPC protocol for a board: no Python, nothing but this program and the two libraries of TVM's runtime.
 *
 *   rpc_server [--host ADDRESS] [--port N] [--public] [--tracker HOST:PORT --key KEY [--address NAME]]
 *
 * One process waits for clients and forks a child for each, which hands its socket to `rpc.ServerLoop` of the runtime: what a client
 * uploads may crash or hang, and takes only its child with it. One client is served at a time, so that none disturbs what another
 * measures; whoever comes meanwhile is told so at once. A child whose client has gone is killed where it does not end by itself, and
 * dies with the server.
 *
 * Whoever connects can run code as this user: the protocol knows no password. So it listens on the loopback alone unless it is told
 * otherwise, twice: an address that others reach is refused without --public.
 *
 * With a tracker it registers under a key, and again after each client. The tracker hands out a match key with the address, and
 * only who brings it is served; one that nobody brings for a while is replaced. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <tvm/ffi/c_api.h>

enum { MAGIC = 0xff271, TRACKER_MAGIC = 0x2f271, SUCCESS = MAGIC, DUPLICATE = MAGIC + 1, MISMATCH = MAGIC + 2 };
enum { PUT = 3, UPDATE_INFO = 5, GET_PENDING_MATCHKEYS = 7 };
enum { TEXT = 256, MESSAGE = 4096, PATH = 512 };
enum { SILENT_S = 30, PROBE_S = 10, PROBES = 3 }; /* after which a client whose machine or network is gone counts as such */
enum { PATIENCE_S = 5, PING_MS = 2000, UNUSED_PINGS = 3, LINGER_MS = 2000, RETRY_MS = 5000 };

static const char *host = "127.0.0.1", *port = "9090", *tracker, *key = "", *address;
static int reachable;
static char work[PATH];
static sigset_t usual_signals;
static volatile sig_atomic_t ending;

static void say(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("rpc_server: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
}

static _Noreturn void refuse(const char *what, const char *which) {
  say("%s: %s", which, what);
  exit(2);
}

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Sockets ---------------------------------------------------------------------------------------------------------- */

/* Moves all bytes; 0 where the other side has gone or keeps silent for too long. */
static int transfer(int file, void *memory, size_t nbytes, int receive) {
  for (size_t done = 0; done < nbytes;) {
    char *at = (char *)memory + done;
    ssize_t moved = receive ? recv(file, at, nbytes - done, 0) : send(file, at, nbytes - done, MSG_NOSIGNAL);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return 0;
    done += (size_t)moved;
  }
  return 1;
}

static int send_number(int file, int32_t number) { return transfer(file, &number, sizeof number, 0); }

static int receive_number(int file, int32_t *number) { return transfer(file, number, sizeof *number, 1); }

/* A text with its length before it. */
static int send_text(int file, const char *text) {
  size_t nbytes = strlen(text);
  return send_number(file, (int32_t)nbytes) && transfer(file, (void *)(uintptr_t)text, nbytes, 0);
}

static int receive_text(int file, char *text, int32_t room) {
  int32_t nbytes;
  if (!receive_number(file, &nbytes) || nbytes < 0 || nbytes >= room || !transfer(file, text, (size_t)nbytes, 1)) return 0;
  text[nbytes] = 0;
  return 1;
}

static void set_patience(int file, int seconds) {
  struct timeval wait = {seconds, 0};
  setsockopt(file, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  setsockopt(file, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
}

static struct addrinfo *resolve(const char *name, const char *service, int flags) {
  struct addrinfo hints = {.ai_flags = flags, .ai_socktype = SOCK_STREAM}, *found = NULL;
  return getaddrinfo(name, service, &hints, &found) ? NULL : found;
}

static int is_loopback(const struct sockaddr *at) {
  if (at->sa_family == AF_INET) return ntohl(((const struct sockaddr_in *)at)->sin_addr.s_addr) >> 24 == 127;
  return at->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)at)->sin6_addr);
}

static int number_of_port(int listening) {
  struct sockaddr_storage at;
  socklen_t nbytes = sizeof at;
  if (getsockname(listening, (struct sockaddr *)&at, &nbytes)) return 0;
  return ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
}

static int start_listening(void) {
  struct addrinfo *found = resolve(host, port, AI_PASSIVE | AI_NUMERICSERV);
  if (!found) refuse("no such address or port", host);
  if (!is_loopback(found->ai_addr) && !reachable)
    refuse("others can reach this address, and whoever does can run code as this user: RPC has no password. Listen on 127.0.0.1 "
           "and tunnel with `ssh -L`, or add --public in a network that you trust",
           host);
  int listening = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
  setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (listening < 0 || bind(listening, found->ai_addr, found->ai_addrlen) || listen(listening, 16))
    refuse(strerror(errno), port);
  freeaddrinfo(found);
  return listening;
}

/* The tracker ------------------------------------------------------------------------------------------------------ */

static int tracker_link = -1;
static int64_t retry_at_ms;
static char match[TEXT]; /* What a client must bring. */
static int unused_pings;

/* Asks the tracker, which answers every message; 0 where it has gone. */
static int ask_tracker(char *answer, const char *format, ...) {
  char message[MESSAGE];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  if (tracker_link >= 0 && send_text(tracker_link, message) && receive_text(tracker_link, answer, MESSAGE)) return 1;
  if (tracker_link >= 0) close(tracker_link);
  tracker_link = -1;
  retry_at_ms = now_ms() + RETRY_MS;
  say("tracker %s: lost", tracker);
  return 0;
}

/* Offers the board to the next client, under a new match key. */
static void offer(int listening) {
  char answer[MESSAGE], name[TEXT] = "null";
  if (!tracker) return;
  uint64_t random = 0;
  int source = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (source < 0 || read(source, &random, sizeof random) != sizeof random) random = (uint64_t)now_ms();
  if (source >= 0) close(source);
  snprintf(match, sizeof match, "%s:0.%020llu", key, (unsigned long long)random);
  if (address) snprintf(name, sizeof name, "\"%s\"", address);
  unused_pings = 0;
  if (tracker_link >= 0) ask_tracker(answer, "[%d, \"%s\", [%d, \"%s\"], %s]", PUT, key, number_of_port(listening), match, name);
}

static void join_tracker(int listening) {
  char copy[TEXT], answer[MESSAGE], name[TEXT] = "null";
  int32_t magic = 0;
  snprintf(copy, sizeof copy, "%s", tracker);
  char *colon = strrchr(copy, ':');
  *colon = 0;
  char *name_of_host = copy; /* of IPv6 in brackets */
  if (copy[0] == '[' && colon > copy + 1 && colon[-1] == ']') name_of_host++, colon[-1] = 0;
  retry_at_ms = now_ms() + RETRY_MS;
  struct addrinfo *found = resolve(name_of_host, colon + 1, AI_NUMERICSERV);
  int joined = found ? socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
  if (joined >= 0) set_patience(joined, PATIENCE_S);
  int right = joined >= 0 && !connect(joined, found->ai_addr, found->ai_addrlen) && send_number(joined, TRACKER_MAGIC) &&
              receive_number(joined, &magic) && magic == TRACKER_MAGIC;
  if (found) freeaddrinfo(found);
  if (!right) {
    say("tracker %s: not reached, tried again every %d s", tracker, RETRY_MS / 1000);
    if (joined >= 0) close(joined);
    return;
  }
  tracker_link = joined;
  if (address) snprintf(name, sizeof name, "\"%s\"", address);
  if (ask_tracker(answer, "[%d, {\"key\": \"server:%s\", \"addr\": [%s, %d]}]", UPDATE_INFO, key, name, number_of_port(listening)))
    say("registered with tracker %s as %s", tracker, key);
}

/* A match key that the tracker has handed out and that nobody brings is replaced: its client is gone. */
static void ping_tracker(int listening) {
  char answer[MESSAGE];
  if (tracker_link < 0 || !ask_tracker(answer, "[%d]", GET_PENDING_MATCHKEYS)) return;
  unused_pings = strstr(answer, match) ? 0 : unused_pings + 1;
  if (unused_pings > UNUSED_PINGS) offer(listening);
}

/* What runs in a client's child ------------------------------------------------------------------------------------- */

static const char *read_text(const TVMFFIAny *value) {
  switch (value->type_index) {
    case kTVMFFIRawStr: return value->v_c_str;
    case kTVMFFISmallStr: return value->v_bytes;
    case kTVMFFIStr: return ((const TVMFFIByteArray *)(value->v_obj + 1))->data;
    default: return "";
  }
}

static int give_text(const char *text, TVMFFIAny *result) {
  TVMFFIByteArray bytes = {text, strlen(text)};
  return TVMFFIStringFromByteArray(&bytes, result);
}

static TVMFFIObjectHandle find_function(const char *name) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle found = NULL;
  if (TVMFFIFunctionGetGlobal(&bytes, &found) || !found) {
    say("%s: not in the libraries beside this program; they are of another version", name);
    _exit(3);
  }
  return found;
}

static void spell_path(char *path, size_t room, const TVMFFIAny *arguments, int32_t count) {
  snprintf(path, room, "%s/%s", work, count > 0 ? read_text(arguments) : "");
}

/* `tvm.rpc.server.workpath`: where an uploaded file lies. */
static int find_path(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
  char path[PATH + TEXT];
  (void)self;
  spell_path(path, sizeof path, arguments, count);
  return give_text(path, result);
}

/* `tvm.rpc.server.load_module`: loads an uploaded shared object, and removes it: a tuner sends thousands, and where they lie may be
 * the board's memory. */
static int load_module(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
  char path[PATH + TEXT];
  TVMFFIAny text = {0};
  (void)self;
  spell_path(path, sizeof path, arguments, count);
  if (give_text(path, &text)) return -1;
  int status = TVMFFIFunctionCall(find_function("ffi.ModuleLoadFromFile"), &text, 1, result);
  if (text.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(text.v_obj);
  unlink(path);
  return status;
}

/* Extensions by the bits of AT_HWCAP and AT_HWCAP2, named as in /proc/cpuinfo. */
#if defined(__aarch64__)
static const char *const extensions[2][32] = {
    {"fp",     "asimd", "evtstrm", "aes",  "pmull",  "sha1",    "sha2", "crc32", "atomics", "fphp",  "asimdhp",
     "cpuid",  "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop",   "sha3", "sm3",   "sm4",     "asimddp", "sha512",
     "sve",    "asimdfhm", "dit",   "uscat", "ilrcpc", "flagm", "ssbs", "sb",    "paca",    "pacg"},
    {"dcpodp", "sve2",     "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2", "frint", "svei8mm", "svef32mm",
     "svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng", "bti"},
};

static void append_extensions(char *text, size_t room) {
  unsigned long present[2] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  for (int word = 0; word < 2; ++word)
    for (int bit = 0; bit < 32; ++bit)
      if (extensions[word][bit] && present[word] >> bit & 1) {
        size_t used = strlen(text);
        snprintf(text + used, room - used, " %s", extensions[word][bit]);
      }
}
#else
static void append_extensions(char *text, size_t room) {
  char line[MESSAGE];
  FILE *file = fopen("/proc/cpuinfo", "r");
  while (file && fgets(line, sizeof line, file)) {
    char *colon = strchr(line, ':');
    if (strncmp(line, "flags", 5) || !colon) continue;
    line[strcspn(line, "\n")] = 0;
    snprintf(text + strlen(text), room - strlen(text), "%s", colon + 1);
    break;
  }
  if (file) fclose(file);
}
#endif

/* `sepwise.board`: the machine and the extensions of its processor, between spaces. */
static int describe(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
  char text[2 * MESSAGE];
  struct utsname name;
  (void)self, (void)arguments, (void)count;
  uname(&name);
  snprintf(text, sizeof text, "%s", name.machine);
  append_extensions(text, sizeof text);
  return give_text(text, result);
}

static void register_function(const char *name, TVMFFISafeCallType function) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle handle;
  if (TVMFFIFunctionCreate(NULL, function, NULL, &handle) || TVMFFIFunctionSetGlobal(&bytes, handle, 1)) _exit(3);
  TVMFFIObjectDecRef(handle);
}

static void set_option(int file, int level, int option, int value) { setsockopt(file, level, option, &value, sizeof value); }

static _Noreturn void serve(int client, int seconds) {
  TVMFFIAny socket = {.type_index = kTVMFFIInt, .v_int64 = client}, result = {0};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  signal(SIGHUP, SIG_DFL);
  sigprocmask(SIG_SETMASK, &usual_signals, NULL);
  set_patience(client, 0);
  set_option(client, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(client, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(client, IPPROTO_TCP, TCP_KEEPIDLE, SILENT_S);
  set_option(client, IPPROTO_TCP, TCP_KEEPINTVL, PROBE_S);
  set_option(client, IPPROTO_TCP, TCP_KEEPCNT, PROBES);
  set_option(client, IPPROTO_TCP, TCP_USER_TIMEOUT, 1000 * (SILENT_S + PROBES * PROBE_S)); /* where an answer is on its way */
  if (chdir(work)) _exit(3);
  alarm((unsigned)seconds); /* 0 for none; ends the child */
  register_function("tvm.rpc.server.workpath", find_path);
  register_function("tvm.rpc.server.load_module", load_module);
  register_function("sepwise.board", describe);
  _exit(TVMFFIFunctionCall(find_function("rpc.ServerLoop"), &socket, 1, &result) ? 1 : 0);
}

/* Clients ---------------------------------------------------------------------------------------------------------- */

static struct session {
  pid_t child; /* 0 while nobody is served */
  int client;
  int alive;            /* Its other end is the child's: closed when that ends. */
  int64_t kill_at_ms;   /* 0 while the client is there */
} session = {0, -1, -1, 0};

static int remove_entry(const char *path, const struct stat *facts, int kind, struct FTW *place) {
  (void)facts, (void)kind, (void)place;
  return remove(path);
}

/* Takes the client's greeting and answers it; gives the seconds that it asks for, -1 where it is not served. */
static int greet(int client) {
  char greeting[TEXT], answer[TEXT], expected[TEXT + 8];
  int32_t magic;
  if (!receive_number(client, &magic) || magic != MAGIC || !receive_text(client, greeting, sizeof greeting)) return -1;
  if (session.child) {
    send_number(client, DUPLICATE);
    return -1;
  }
  snprintf(expected, sizeof expected, "client:%s", tracker ? match : key);
  const char *options = strchr(greeting, ' ');
  if (options) greeting[options++ - greeting] = 0;
  if (strcmp(greeting, expected)) {
    send_number(client, MISMATCH);
    return -1;
  }
  snprintf(answer, sizeof answer, "server:%.200s", key);
  if (!send_number(client, SUCCESS) || !send_text(client, answer)) return -1;
  const char *timeout = options ? strstr(options, "-timeout=") : NULL;
  int seconds = timeout ? atoi(timeout + strlen("-timeout=")) : 0;
  return seconds < 0 ? 0 : seconds;
}

static void accept_client(int listening) {
  int client = accept4(listening, NULL, NULL, SOCK_CLOEXEC), ends[2];
  if (client < 0) return;
  set_patience(client, PATIENCE_S);
  int seconds = greet(client);
  if (seconds < 0 || pipe2(ends, O_CLOEXEC)) {
    close(client);
    return;
  }
  const char *folder = getenv("TMPDIR");
  snprintf(work, sizeof work, "%s/sepwise-XXXXXX", folder ? folder : "/tmp"); /* a session's own until it ends */
  pid_t child = mkdtemp(work) ? fork() : -1;
  if (child == 0) {
    close(listening);
    serve(client, seconds);
  }
  close(ends[1]);
  if (child < 0) {
    say("%s: %s; the client is sent away", work, strerror(errno));
    close(ends[0]);
    close(client);
    return;
  }
  session = (struct session){child, client, ends[0], 0};
}

static void end_session(void) {
  int status;
  waitpid(session.child, &status, 0);
  if (WIFSIGNALED(status) && !ending) say("a client's code ended with %s", strsignal(WTERMSIG(status)));
  close(session.client);
  close(session.alive);
  session = (struct session){0, -1, -1, 0};
  nftw(work, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void end(int number) {
  (void)number;
  ending = 1;
}

/* Serves until a signal ends it, which comes while it waits and at no other time. */
static void wait_for_clients(int listening) {
  int64_t ping_at_ms = 0;
  while (!ending) {
    if (tracker && tracker_link < 0 && now_ms() >= retry_at_ms) {
      join_tracker(listening);
      if (!session.child) offer(listening);
    }
    struct pollfd files[] = {
        {listening, POLLIN, 0},
        {session.alive, POLLIN, 0},
        {session.kill_at_ms ? -1 : session.client, POLLRDHUP, 0},
    };
    int64_t wait_ms = session.kill_at_ms ? session.kill_at_ms - now_ms() : tracker ? PING_MS : -1;
    if (session.kill_at_ms && wait_ms < 0) wait_ms = 0;
    struct timespec wait = {wait_ms / 1000, wait_ms % 1000 * 1000000};
    if (ppoll(files, 3, wait_ms < 0 ? NULL : &wait, &usual_signals) < 0) {
      if (errno == EINTR) continue;
      refuse(strerror(errno), "poll");
    }
    if (files[1].revents) {
      end_session();
      offer(listening);
    } else if (files[2].revents) {
      session.kill_at_ms = now_ms() + LINGER_MS;
    }
    if (session.kill_at_ms && now_ms() >= session.kill_at_ms) kill(session.child, SIGKILL);
    if (files[0].revents) accept_client(listening);
    if (tracker && !session.child && now_ms() >= ping_at_ms) {
      ping_tracker(listening);
      ping_at_ms = now_ms() + PING_MS;
    }
  }
  if (session.child) {
    kill(session.child, SIGKILL);
    end_session();
  }
}

static void read_options(int count, char **words) {
  static const char usage[] =
      "usage: rpc_server [--host ADDRESS] [--port N] [--public] [--tracker HOST:PORT --key KEY [--address NAME]]\n"
      "  --host     where to listen; 127.0.0.1 where absent, which only this machine reaches\n"
      "  --port     9090 where absent, 0 for any that is free\n"
      "  --public   listen where others can reach it: whoever does can run code as this user, there is no password\n"
      "  --tracker  register there, under --key; --address is what clients are told, where it is not what the tracker sees\n";
  for (int i = 1; i < count; ++i) {
    const char **options[] = {&host, &port, &tracker, &key, &address};
    static const char *const names[] = {"--host", "--port", "--tracker", "--key", "--address"};
    int known = 0;
    for (int each = 0; each < 5; ++each) {
      if (strcmp(words[i], names[each])) continue;
      if (++i == count) refuse("needs a value", names[each]);
      *options[each] = words[i];
      known = 1;
      break;
    }
    if (known) continue;
    if (!strcmp(words[i], "--help")) {
      fputs(usage, stdout);
      exit(0);
    }
    if (strcmp(words[i], "--public")) {
      fputs(usage, stderr);
      refuse("unknown option", words[i]);
    }
    reachable = 1;
  }
  if (tracker && (!strrchr(tracker, ':') || !*key || strlen(tracker) >= TEXT)) refuse("needed are HOST:PORT, and --key", tracker);
  if (address && (strlen(address) > TEXT / 4 || strpbrk(address, " \"\\"))) refuse("no address", address);
  if (strlen(key) > TEXT / 4 || strpbrk(key, " \"\\")) refuse("too long a key, or with characters that no key has", key);
}

int main(int count, char **words) {
  read_options(count, words);
  const int signals[] = {SIGINT, SIGTERM, SIGHUP};
  sigset_t held;
  sigemptyset(&held);
  for (int i = 0; i < 3; ++i) {
    sigaction(signals[i], &(struct sigaction){.sa_handler = end}, NULL);
    sigaddset(&held, signals[i]);
  }
  sigprocmask(SIG_BLOCK, &held, &usual_signals);
  signal(SIGPIPE, SIG_IGN);
  int listening = start_listening();
  printf("listening on %s port %d\n", host, number_of_port(listening));
  fflush(stdout);
  wait_for_clients(listening);
  return 0;
}
