#!/usr/bin/perl
# Both kinds of redirect (RFC 3875 section 6.2): a path is answered by the server, an address by the client.
use strict;
use warnings;

my $front = $ENV{SCRIPT_NAME} =~ s{/away\.pl\z}{/}r;
my $host = $ENV{HTTP_HOST} // $ENV{SERVER_NAME};
my $where = ($ENV{QUERY_STRING} // '') eq 'local' ? $front : "$ENV{REQUEST_SCHEME}://$host$front";
print "Location: $where\n\n";
