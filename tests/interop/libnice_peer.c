/* One ICE agent made of libnice, driven line by line: the foreign peer of the interoperability tests.
 *
 * One stream with one component, RFC 5245 compatibility, UDP only, no UPnP. Both directions speak lines of text.
 *
 * stdout, flushed line by line:
 *   options NAME=0|1 ...         what the agent is set to, read back from it; always the first line
 *   a=ice-ufrag:, a=ice-pwd:     local credentials (RFC 8839, 5.4)
 *   a=candidate:                 a local candidate (RFC 8839, 5.1); with --trickle as soon as it is found
 *   a=end-of-candidates          gathering is over (RFC 8840, 8)
 *   state NAME                   disconnected, gathering, connecting, connected, ready or failed
 *   selected LOCAL REMOTE        the selected pair, as HOST:PORT or [HOST]:PORT
 *   recv HEX                     a datagram of the application
 *   echo on | echo off           the answer to the same line: in force for every datagram that is told after it
 *   error REASON: LINE           a line of stdin that was not obeyed
 *
 * stdin:
 *   a=ice-ufrag:, a=ice-pwd:, a=candidate:, a=end-of-candidates     the remote side, in any order, at any time
 *   a=...                        any other attribute is ignored
 *   send HEX                     sends one datagram over the selected pair
 *   echo on | echo off           returns every datagram, or no longer
 *   quit                         ends the program, as the end of stdin does
 *
 * Exit status: 0 after quit or the end of stdin, 1 if the agent cannot gather, 2 for a wrong command line.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nice/agent.h>

#define COMPONENT NICE_COMPONENT_TYPE_RTP
/* The longest payload of a UDP datagram over IPv4: 65,535 - 20 (IP) - 8 (UDP). */
#define MAX_PAYLOAD 65507

typedef struct {
  gint controlling;
  gchar **addresses;
  gchar *stun;
  gchar *turn;
  gboolean regular;
  gboolean aggressive;
  gboolean renomination;
  gboolean trickle;
  gboolean consent;
} Options;

typedef struct {
  GMainLoop *loop;
  NiceAgent *agent;
  guint stream_id;
  gboolean trickle;
  gboolean gathered;
  gboolean echo;
  gchar *remote_ufrag;
  gchar *remote_pwd;
  gboolean remote_known;  /* both credentials were given to the agent */
  gboolean remote_complete;  /* end-of-candidates came and was not yet passed on */
  GSList *waiting;  /* remote candidates not yet given to the agent, in order of arrival */
} Peer;

static void
say_local_candidate (Peer *peer, NiceCandidate *candidate)
{
  gchar *line = nice_agent_generate_local_candidate_sdp (peer->agent, candidate);

  printf ("%s\n", line);
  g_free (line);
}

static void
say_credentials (Peer *peer)
{
  gchar *ufrag = NULL, *pwd = NULL;

  nice_agent_get_local_credentials (peer->agent, peer->stream_id, &ufrag, &pwd);
  printf ("a=ice-ufrag:%s\na=ice-pwd:%s\n", ufrag, pwd);
  g_free (ufrag);
  g_free (pwd);
}

static void
say_options (NiceAgent *agent)
{
  static const gchar *names[] = {
    "controlling-mode", "support-renomination", "ice-trickle", "consent-freshness", "ice-udp", "ice-tcp", "upnp",
  };
  NiceNominationMode nomination;

  g_object_get (agent, "nomination-mode", &nomination, NULL);
  printf ("options regular-nomination=%d", nomination == NICE_NOMINATION_MODE_REGULAR);
  for (gsize i = 0; i < G_N_ELEMENTS (names); i++) {
    gboolean value = FALSE;

    g_object_get (agent, names[i], &value, NULL);
    printf (" %s=%d", names[i], value);
  }
  printf ("\n");
}

static gchar *
address_text (const NiceAddress *address)
{
  gchar host[NICE_ADDRESS_STRING_LEN];

  nice_address_to_string (address, host);
  return g_strdup_printf (nice_address_ip_version (address) == 6 ? "[%s]:%u" : "%s:%u", host,
      nice_address_get_port (address));
}

/* What the agent reports. */

static void
on_new_candidate (NiceAgent *agent, NiceCandidate *candidate, gpointer data)
{
  Peer *peer = data;

  (void) agent;
  /* Without trickle all candidates are told at once when gathering is over. A peer-reflexive candidate, which libnice
   * reports here too, is never signalled (RFC 8445, 5.1.1 lists what is gathered). */
  if (peer->trickle && !peer->gathered && candidate->type != NICE_CANDIDATE_TYPE_PEER_REFLEXIVE)
    say_local_candidate (peer, candidate);
}

static void
on_gathering_done (NiceAgent *agent, guint stream_id, gpointer data)
{
  Peer *peer = data;

  peer->gathered = TRUE;
  if (!peer->trickle) {
    GSList *candidates = nice_agent_get_local_candidates (agent, stream_id, COMPONENT);

    for (GSList *item = candidates; item; item = item->next)
      say_local_candidate (peer, item->data);
    g_slist_free_full (candidates, (GDestroyNotify) nice_candidate_free);
  }
  printf ("a=end-of-candidates\n");
}

static void
on_state (NiceAgent *agent, guint stream_id, guint component_id, guint state, gpointer data)
{
  (void) agent, (void) stream_id, (void) component_id, (void) data;
  printf ("state %s\n", nice_component_state_to_string (state));
}

static void
on_selected (NiceAgent *agent, guint stream_id, guint component_id, NiceCandidate *local, NiceCandidate *remote,
    gpointer data)
{
  gchar *from = address_text (&local->addr), *to = address_text (&remote->addr);

  (void) agent, (void) stream_id, (void) component_id, (void) data;
  printf ("selected %s %s\n", from, to);
  g_free (from);
  g_free (to);
}

static void
on_payload (NiceAgent *agent, guint stream_id, guint component_id, guint length, gchar *payload, gpointer data)
{
  Peer *peer = data;

  printf ("recv ");
  for (guint i = 0; i < length; i++)
    printf ("%02x", (guchar) payload[i]);
  printf ("\n");
  if (peer->echo && nice_agent_send (agent, stream_id, component_id, length, payload) != (gint) length)
    printf ("error not sent: echo\n");
}

/* What stdin asks for. Each function returns NULL or the reason why it did not obey. */

static const gchar *
send_hex (Peer *peer, const gchar *hex)
{
  static gchar payload[MAX_PAYLOAD];
  gsize length = strlen (hex) / 2;

  if (strlen (hex) % 2 != 0 || strspn (hex, "0123456789abcdefABCDEF") != strlen (hex))
    return "not hexadecimal";
  if (length > MAX_PAYLOAD)
    return "too long";
  for (gsize i = 0; i < length; i++)
    payload[i] = (gchar) (g_ascii_xdigit_value (hex[2 * i]) << 4 | g_ascii_xdigit_value (hex[2 * i + 1]));
  if (nice_agent_send (peer->agent, peer->stream_id, COMPONENT, length, payload) != (gint) length)
    return "not sent";
  return NULL;
}

static const gchar *
remote_candidate (Peer *peer, const gchar *line)
{
  NiceCandidate *candidate = nice_agent_parse_remote_candidate_sdp (peer->agent, peer->stream_id, line);

  if (candidate == NULL)
    return "no candidate";
  if (candidate->component_id != COMPONENT) {
    nice_candidate_free (candidate);
    return "no such component";
  }
  peer->waiting = g_slist_append (peer->waiting, candidate);
  return NULL;
}

static const gchar *
remote_attribute (Peer *peer, const gchar *line)
{
  if (g_str_has_prefix (line, "a=candidate:"))
    return remote_candidate (peer, line);
  if (g_str_has_prefix (line, "a=ice-ufrag:")) {
    g_free (peer->remote_ufrag);
    peer->remote_ufrag = g_strdup (line + strlen ("a=ice-ufrag:"));
  } else if (g_str_has_prefix (line, "a=ice-pwd:")) {
    g_free (peer->remote_pwd);
    peer->remote_pwd = g_strdup (line + strlen ("a=ice-pwd:"));
  } else if (g_str_equal (line, "a=end-of-candidates")) {
    peer->remote_complete = TRUE;
  }
  return NULL;
}

static const gchar *
obey (Peer *peer, const gchar *line)
{
  if (g_str_has_prefix (line, "a="))
    return remote_attribute (peer, line);
  if (g_str_has_prefix (line, "send "))
    return send_hex (peer, line + strlen ("send "));
  if (g_str_equal (line, "echo on") || g_str_equal (line, "echo off")) {
    peer->echo = g_str_equal (line, "echo on");
    printf ("%s\n", line);
  } else if (g_str_equal (line, "quit"))
    g_main_loop_quit (peer->loop);
  else
    return "unknown command";
  return NULL;
}

/* Gives the agent what stdin has told about the remote side, in the order that it needs: a check without the remote
 * credentials could not be authenticated, so candidates wait for them. */
static void
apply_remote (Peer *peer)
{
  if (peer->remote_ufrag && peer->remote_pwd) {
    if (!nice_agent_set_remote_credentials (peer->agent, peer->stream_id, peer->remote_ufrag, peer->remote_pwd))
      printf ("error credentials refused: %s\n", peer->remote_ufrag);
    g_clear_pointer (&peer->remote_ufrag, g_free);
    g_clear_pointer (&peer->remote_pwd, g_free);
    peer->remote_known = TRUE;
  }
  if (!peer->remote_known)
    return;
  if (peer->waiting) {
    if (nice_agent_set_remote_candidates (peer->agent, peer->stream_id, COMPONENT, peer->waiting) < 0)
      printf ("error candidates refused: set_remote_candidates\n");
    g_slist_free_full (peer->waiting, (GDestroyNotify) nice_candidate_free);
    peer->waiting = NULL;
  }
  if (peer->remote_complete) {
    if (!nice_agent_peer_candidate_gathering_done (peer->agent, peer->stream_id))
      printf ("error end refused: a=end-of-candidates\n");
    peer->remote_complete = FALSE;
  }
}

/* Reads every complete line there is; lines that arrive together reach the agent together. */
static gboolean
on_stdin (GIOChannel *channel, GIOCondition condition, gpointer data)
{
  Peer *peer = data;
  gchar *line = NULL;
  GIOStatus status;

  (void) condition;
  while ((status = g_io_channel_read_line (channel, &line, NULL, NULL, NULL)) == G_IO_STATUS_NORMAL) {
    const gchar *reason = obey (peer, g_strchomp (line));

    if (reason)
      printf ("error %s: %s\n", reason, line);
    g_free (line);
  }
  apply_remote (peer);
  if (status == G_IO_STATUS_AGAIN)
    return G_SOURCE_CONTINUE;
  g_main_loop_quit (peer->loop);
  return G_SOURCE_REMOVE;
}

/* Setting up. */

G_GNUC_NORETURN static void
usage (const gchar *reason, const gchar *value)
{
  fprintf (stderr, "libnice_peer: %s: %s\n", reason, value);
  exit (2);
}

static Options
parse_options (int argc, char **argv)
{
  Options options = { .controlling = -1 };
  const GOptionEntry entries[] = {
    { "controlling", 0, 0, G_OPTION_ARG_INT, &options.controlling, "1 controlling, 0 controlled", "0|1" },
    { "address", 0, 0, G_OPTION_ARG_STRING_ARRAY, &options.addresses, "gather on this address only; repeatable", "A" },
    { "stun", 0, 0, G_OPTION_ARG_STRING, &options.stun, "STUN server; HOST is an IP address", "HOST:PORT" },
    { "turn", 0, 0, G_OPTION_ARG_STRING, &options.turn, "TURN server over UDP; HOST is an IP address",
      "USER:PASSWORD@HOST:PORT" },
    { "regular", 0, 0, G_OPTION_ARG_NONE, &options.regular, "regular nomination (the default)", NULL },
    { "aggressive", 0, 0, G_OPTION_ARG_NONE, &options.aggressive, "aggressive nomination", NULL },
    { "renomination", 0, 0, G_OPTION_ARG_NONE, &options.renomination, "support renomination", NULL },
    { "trickle", 0, 0, G_OPTION_ARG_NONE, &options.trickle, "trickle ICE (RFC 8838)", NULL },
    { "consent", 0, 0, G_OPTION_ARG_NONE, &options.consent, "consent freshness (RFC 7675)", NULL },
    { 0 },
  };
  GOptionContext *context = g_option_context_new ("- an ICE agent made of libnice");
  GError *error = NULL;

  g_option_context_add_main_entries (context, entries, NULL);
  if (!g_option_context_parse (context, &argc, &argv, &error))
    usage ("wrong command line", error->message);
  g_option_context_free (context);
  if (argc > 1)
    usage ("there are no positional arguments", argv[1]);
  if (options.controlling != 0 && options.controlling != 1)
    usage ("required", "--controlling 0|1");
  if (options.regular && options.aggressive)
    usage ("exclude each other", "--regular, --aggressive");
  return options;
}

static NiceAgent *
make_agent (const Options *options)
{
  NiceAgentOption flags = NICE_AGENT_OPTION_NONE;
  NiceAgent *agent;

  if (!options->aggressive)
    flags |= NICE_AGENT_OPTION_REGULAR_NOMINATION;
  if (options->renomination)
    flags |= NICE_AGENT_OPTION_SUPPORT_RENOMINATION;
  if (options->trickle)
    flags |= NICE_AGENT_OPTION_ICE_TRICKLE;
  if (options->consent)
    flags |= NICE_AGENT_OPTION_CONSENT_FRESHNESS;
  agent = nice_agent_new_full (NULL, NICE_COMPATIBILITY_RFC5245, flags);
  g_object_set (agent, "controlling-mode", options->controlling, "upnp", FALSE, "ice-tcp", FALSE, NULL);
  return agent;
}

static void
add_addresses (NiceAgent *agent, gchar **addresses)
{
  for (gsize i = 0; addresses && addresses[i]; i++) {
    NiceAddress address;

    nice_address_init (&address);
    if (!nice_address_set_from_string (&address, addresses[i]) || !nice_agent_add_local_address (agent, &address))
      usage ("--address needs an IP address", addresses[i]);
  }
}

/* Returns the host of HOST:PORT or [HOST]:PORT, to be freed, and sets the port. */
static gchar *
split_address (const gchar *text, const gchar *reason, guint *port)
{
  const gchar *colon = strrchr (text, ':');
  guint64 number = 0;
  gchar *host;

  if (colon == NULL || !g_ascii_string_to_unsigned (colon + 1, 10, 1, 65535, &number, NULL))
    usage (reason, text);
  host = g_strndup (text, (gsize) (colon - text));
  if (host[0] == '[' && g_str_has_suffix (host, "]")) {
    host[strlen (host) - 1] = '\0';
    memmove (host, host + 1, strlen (host));
  }
  *port = (guint) number;
  return host;
}

static void
set_stun_server (NiceAgent *agent, const gchar *stun)
{
  guint port = 0;
  gchar *host = split_address (stun, "--stun needs HOST:PORT", &port);

  g_object_set (agent, "stun-server", host, "stun-server-port", port, NULL);
  g_free (host);
}

/* Needs the stream; before gathering. */
static void
set_turn_server (const Peer *peer, const gchar *turn)
{
  const gchar *reason = "--turn needs USER:PASSWORD@HOST:PORT", *at = strrchr (turn, '@');
  gchar *account = at ? g_strndup (turn, (gsize) (at - turn)) : NULL;
  gchar *colon = account ? strchr (account, ':') : NULL;
  guint port = 0;
  gchar *host;

  if (colon == NULL)
    usage (reason, turn);
  *colon = '\0';
  host = split_address (at + 1, reason, &port);
  if (!nice_agent_set_relay_info (peer->agent, peer->stream_id, COMPONENT, host, port, account, colon + 1,
          NICE_RELAY_TYPE_TURN_UDP))
    usage ("--turn is refused by libnice", turn);
  g_free (host);
  g_free (account);
}

static void
watch_stdin (Peer *peer)
{
  GIOChannel *channel = g_io_channel_unix_new (0);

  g_io_channel_set_encoding (channel, NULL, NULL);
  g_io_channel_set_flags (channel, G_IO_FLAG_NONBLOCK, NULL);
  g_io_add_watch (channel, G_IO_IN | G_IO_HUP | G_IO_ERR, on_stdin, peer);
  g_io_channel_unref (channel);
}

static void
start (Peer *peer, const Options *options)
{
  g_signal_connect (peer->agent, "new-candidate-full", G_CALLBACK (on_new_candidate), peer);
  g_signal_connect (peer->agent, "candidate-gathering-done", G_CALLBACK (on_gathering_done), peer);
  g_signal_connect (peer->agent, "component-state-changed", G_CALLBACK (on_state), peer);
  g_signal_connect (peer->agent, "new-selected-pair-full", G_CALLBACK (on_selected), peer);
  peer->stream_id = nice_agent_add_stream (peer->agent, 1);
  if (options->turn)
    set_turn_server (peer, options->turn);
  nice_agent_attach_recv (peer->agent, peer->stream_id, COMPONENT, NULL, on_payload, peer);
  say_options (peer->agent);
  say_credentials (peer);
  if (!nice_agent_gather_candidates (peer->agent, peer->stream_id)) {
    fprintf (stderr, "libnice_peer: cannot gather candidates\n");
    exit (1);
  }
}

int
main (int argc, char **argv)
{
  Options options;
  Peer peer = { 0 };

  setvbuf (stdout, NULL, _IOLBF, 0);
  options = parse_options (argc, argv);
  peer.trickle = options.trickle;
  peer.loop = g_main_loop_new (NULL, FALSE);
  peer.agent = make_agent (&options);
  add_addresses (peer.agent, options.addresses);
  if (options.stun)
    set_stun_server (peer.agent, options.stun);
  start (&peer, &options);
  watch_stdin (&peer);
  g_main_loop_run (peer.loop);
  nice_agent_remove_stream (peer.agent, peer.stream_id);
  g_object_unref (peer.agent);
  return 0;
}
