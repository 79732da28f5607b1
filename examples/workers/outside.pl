#!/usr/bin/env perl
# A jobgate worker in plain Perl that is nobody's child: it comes to the gate over TCP, as
# `perl outside.pl HOST PORT QUEUE`, answers with the SHA-256 of what it is given, and comes back
# when it has lost the gate. count.pl tells about frames.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use IO::Socket::INET;
use JSON::PP qw(encode_json decode_json);

use constant { HELLO => 1, WELCOME => 2, COMMAND => 3, REPLY => 4, FAIL => 5, DECLINE => 9,
               PING => 10, PONG => 11, DRAIN => 12 };

my ($host, $port, $queue) = @ARGV;
die "usage: perl outside.pl HOST PORT QUEUE\n" unless defined $queue;
my $leaving = 0;
my $gate;

sub receive {
    my ($count) = @_;
    my $data = '';
    while (length $data < $count) {
        my $got = sysread($gate, $data, $count - length $data, length $data);
        next if !defined $got && $!{EINTR};
        die "the gate is gone\n" unless $got;
    }
    return $data;
}

sub answer {
    my ($type, $id, $meta, $body) = @_;
    $meta = $meta ? encode_json($meta) : '';
    $body //= '';
    my $frame = pack('NCCnNN', 12 + length($meta) + length($body), 1, $type, 0, $id, length $meta)
        . $meta . $body;
    while (length $frame) {
        my $put = syswrite($gate, $frame);
        next if !defined $put && $!{EINTR};
        die "the gate is gone\n" unless $put;
        substr($frame, 0, $put, '');
    }
}

sub work {
    answer(HELLO, 0, { protocol => 1, ordered => JSON::PP::true, queue => $queue,
                       $ENV{JOBGATE_TOKEN} ? (token => $ENV{JOBGATE_TOKEN}) : () });
    while (1) {
        my ($length, undef, $type, undef, $id, $meta_length) = unpack('NCCnNN', receive(16));
        my $meta = receive($meta_length);
        my $body = receive($length - 12 - $meta_length);
        if ($type == COMMAND && $leaving) {
            answer(DECLINE, $id);    # it has crossed our DRAIN on its way
        } elsif ($type == COMMAND) {
            answer(REPLY, $id, { content_type => 'text/plain; charset=utf-8' }, sha256_hex($body));
        } elsif ($type == PING) {
            answer(PONG, $id);
        } elsif ($type == DRAIN) {
            return;
        } elsif ($type == FAIL) {    # a refusal
            my $why = decode_json($meta);
            print STDERR "refused: $why->{title}: $why->{detail}\n";
            exit 1 if defined $why->{retry} && !$why->{retry};
        }    # WELCOME and CANCEL ask nothing of a worker this simple
    }
}

# To leave in good order: say DRAIN, and go when the gate says it, too.
$SIG{TERM} = sub {
    exit 0 if $leaving++ || !$gate;
    answer(DRAIN, 0);
};
$SIG{PIPE} = 'IGNORE';

until ($leaving) {
    $gate = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Timeout => 10);
    eval { $gate->sockopt(SO_KEEPALIVE, 1); work(); 1 } or print STDERR $@ if $gate;
    undef $gate;
    sleep 1 unless $leaving;
}
