# SPDX-License-Identifier: Apache-2.0
"""What a kubeconfig says: every field that changes who one is, or where one connects, is honoured or refused by name."""

import base64
import copy
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.kubernetes.kubeconfig import File, Plugin, bearer, choose, proxy_of

from kmesh_bpf import ConfigError

SECRET = "sEcReT" * 6
"""Stands wherever credentials are."""
PEM = base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode()
SERVER = "https://10.0.0.1:6443"


def config(user: dict | None = None, cluster: dict | None = None, **top: object) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **(cluster or {})}}],
        "users": [{"name": "u", "user": user if user is not None else {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **top,
    }


def read(content: dict, context: str | None = None):
    return choose([File("/home/me/config", "/home/me", content)], context)


def of_user(**user: object):
    return read(config(user))


def refused(content: dict, context: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(content, context)
    said = str(caught.value)
    assert "\n" not in said
    assert SECRET not in said
    return said


def test_the_context_names_the_server_and_who_we_are():
    found = of_user(token=f"{SECRET}\n")
    assert (found.server, found.token, found.headers) == (SERVER, SECRET, ())
    other = config({"token": "t"}, contexts=[{"name": name, "context": {"cluster": "c", "user": "u"}} for name in "xy"])
    assert read(other, "y").token == "t"


def test_of_token_and_token_file_the_file_wins_as_with_kubectl():
    found = of_user(token="t", tokenFile="token")
    assert (found.token, found.token_file) == ("", "/home/me/token")


def test_as_is_sent_a_line_for_each_value():
    user = {
        "token": "t",
        "as": "joe",
        "as-uid": "7",
        "as-groups": ["a", "b"],
        "as-user-extra": {"acme.com/team": ["x", "y"]},
    }
    assert read(config(user)).headers == (
        ("Impersonate-User", "joe"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-acme.com%2Fteam", "x"),
        ("Impersonate-Extra-acme.com%2Fteam", "y"),
    )


@pytest.mark.parametrize("alone", [{"as-uid": "7"}, {"as-groups": ["a"]}, {"as-user-extra": {"a": ["b"]}}])
def test_to_be_of_a_group_without_being_somebody_is_refused(alone):
    assert "need as, which is missing" in refused(config({"token": SECRET, **alone}))


def test_basic_credentials_are_sent():
    coded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert of_user(username="me", password=SECRET).headers == (("Authorization", f"Basic {coded}"),)


def test_certificates_are_paths_below_the_file_or_what_stands_in_it():
    user = {"client-certificate": "me.crt", "client-key-data": f"{PEM[:8]}\n{PEM[8:]}"}
    cluster = {"certificate-authority": "/etc/ca.crt", "tls-server-name": "api", "disable-compression": True}
    found = read(config(user, cluster))
    assert found.material == {
        "certificate-authority": "/etc/ca.crt",
        "client-certificate": "/home/me/me.crt",
        "client-key-data": PEM,
    }
    assert (found.server_name, found.insecure) == ("api", False)
    assert read(config({}, {"insecure-skip-tls-verify": True})).insecure


def test_a_plugin_is_asked_only_where_nothing_else_says_who_we_are():
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "bin/login",
        "args": ["--cluster", "c"],
        "env": [{"name": "PROFILE", "value": "p"}],
        "interactiveMode": "Never",
        "installHint": "get\nit",
        "provideClusterInfo": True,
    }
    cluster = {"certificate-authority-data": PEM, "extensions": [
        {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}]}  # fmt: skip
    found = read(config({"exec": plugin}, cluster)).plugin
    told = {
        "server": SERVER,
        "insecure-skip-tls-verify": False,
        "certificate-authority-data": PEM,
        "config": {"audience": "a"},
    }
    api = "client.authentication.k8s.io/v1"
    assert found == Plugin("/home/me/bin/login", ("--cluster", "c"), {"PROFILE": "p"}, api, "Never", "get it", told)
    assert of_user(exec=plugin, token="t").plugin is None


def test_what_kubectl_has_logged_in_with_is_used_and_other_providers_are_refused():
    assert of_user(**{"auth-provider": {"name": "oidc", "config": {"id-token": SECRET}}}).token == SECRET
    assert "id-token is missing" in refused(config({"auth-provider": {"name": "oidc"}}))
    gcp = refused(config({"auth-provider": {"name": "gcp", "config": {"access-token": SECRET}}}))
    assert "auth-provider gcp is not provided" in gcp
    assert "use exec" in gcp


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"token": f"a\n{SECRET}"}, "user u.token holds line ends"),
        ({"token": f"a {SECRET}"}, "user u.token holds blanks"),
        ({"token": "\n"}, "user u.token is empty"),
        ({"token": 5}, "user u.token is no string"),
        ({"token": f"ä{SECRET}"}, "user u.token holds line ends, or other characters"),
        ({"tokenFile": ["a"]}, "user u.tokenFile is no string"),
        ({"tokenFile": "a\0b"}, "user u.tokenFile holds a NUL"),
        ({"as": f"a\nImpersonate-Group: {SECRET}"}, "user u.as holds line ends"),
        ({"as": "a", "as-groups": "b"}, "user u.as-groups is no list"),
        ({"as": "a", "as-user-extra": {"k": "v"}}, "user u.as-user-extra.k is no list"),
        ({"username": "me"}, "username and password belong together"),
        ({"username": "me", "password": SECRET, "token": SECRET}, "token and username are two identities"),
        ({"client-certificate": "a"}, "client-certificate and client-key belong together"),
        ({"client-key-data": PEM}, "client-certificate and client-key belong together"),
        ({"client-key-data": f"{SECRET}!", "client-certificate": "a"}, "client-key-data is no base64"),
        ({"client-key-data": PEM, "client-key": "a", "client-certificate": "a"}, "are both given"),
        ({"exec": {}}, "user u.exec.command is missing"),
        ({"exec": {"command": "x"}}, "user u.exec.apiVersion is missing"),
        ({"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}}, "is not provided"),
        ({"exec": "x"}, "user u.exec is no mapping"),
        ({"exec": {}, "auth-provider": {}}, "exec and auth-provider are two identities"),
        ({"Token": SECRET}, "nothing is known of Token, and no credentials are there"),
        ({"tokenfile": SECRET}, "nothing is known of tokenfile"),
    ],
)  # fmt: skip
def test_credentials_that_cannot_be_had_are_refused_and_not_left_out(user, said):
    assert said in refused(config(user))


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"server": None}, "cluster c.server is missing"),
        ({"server": "10.0.0.1:6443"}, "is no URL; write https://HOST:PORT"),
        ({"server": "https://"}, "is no URL"),
        ({"server": "https://a:99999"}, "is no URL"),
        ({"server": "unix:///run/x"}, "is no URL"),
        ({"server": f"https://me:{SECRET}@a"}, "holds a user or a password"),
        ({"server": f"https://a?token={SECRET}"}, "is more than https://HOST:PORT/PATH"),
        ({"server": "https://a\r\nX: y"}, "holds line ends"),
        ({"proxy-url": "proxy:3128"}, "proxy-url is no URL of a proxy"),
        ({"proxy-url": f"ftp://me:{SECRET}@a"}, "proxy-url is no URL of a proxy"),
        ({"proxy-url": 5}, "proxy-url is no string"),
        ({"tls-server-name": "a\n"}, "tls-server-name holds line ends"),
        ({"insecure-skip-tls-verify": "no"}, "insecure-skip-tls-verify is neither true nor false"),
        ({"insecure-skip-tls-verify": True, "certificate-authority-data": PEM}, "contradict each other"),
        ({"certificate-authority-data": "!"}, "certificate-authority-data is no base64"),
        ({"disable-compression": 5}, "disable-compression is neither true nor false"),
    ],
)
def test_a_server_that_cannot_be_reached_as_asked_is_refused(cluster, said):
    assert said in refused(config({"token": SECRET}, cluster))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "Secret"}, "is no kubeconfig: its kind is not Config"),
        ({}, "has no current-context; give --context NAME"),
        (config(contexts=None), "has no context x"),
        (config(contexts={}), "has no context x"),
        (config(contexts="x"), "contexts is no list"),
        (config(contexts=[{"name": "x"}]), "context x is no mapping"),
        (config(contexts=[{"name": "x", "context": {}}]), "context x.cluster is missing"),
        (config(clusters=[]), "has no cluster c"),
        (config(clusters=[5, None, {"name": "c", "cluster": []}]), "cluster c is no mapping"),
        (config(users=[{"name": "other", "user": {"token": SECRET}}]), "has no user u (there are: other)"),
        (config(users=[{"name": "u", "token": SECRET}]), "user u is no mapping"),
        (config(users=[{"name": "u", "user": {"token": SECRET}}] * 2), "user u is there 2 times"),
        (config(**{"current-context": 5}), "current-context is no string"),
    ],
)
def test_what_is_no_kubeconfig_is_refused_in_our_own_words(content, said):
    assert said in refused(content)


def test_a_context_that_is_not_there_is_refused_and_those_that_are_are_named():
    assert refused(config(), "lab") == "/home/me/config has no context lab (there are: x)"


def test_without_a_user_we_are_nobody_on_purpose():
    found = read(config(contexts=[{"name": "x", "context": {"cluster": "c"}}]))
    assert (found.token, found.token_file, found.plugin, found.headers, found.material) == ("", "", None, (), {})
    assert of_user().token == ""


def test_of_another_user_s_fault_nobody_suffers():
    users = [5, {"name": "broken", "user": 5}, {"name": "u", "user": {"token": "t"}}, {"user": {}}]
    assert read(config(users=users)).token == "t"


def test_of_several_files_the_first_that_says_something_counts_and_paths_are_below_their_own():
    one = {"current-context": "", "users": [{"name": "u", "user": {"tokenFile": "t"}}]}
    two = config({"token": "other"}, {"certificate-authority": "ca"})
    found = choose([File("/a/one", "/a", one), File("/b/two", "/b", two)], None)
    assert (found.token, found.token_file) == ("", "/a/t")
    assert found.material == {"certificate-authority": "/b/ca"}


def test_several_groups_through_a_proxy_without_tls_would_become_one_and_are_refused():
    cluster = {"server": "http://a", "proxy-url": "http://p:1"}
    assert "several as-groups" in refused(config({"as": "a", "as-groups": ["b", "c"]}, cluster))
    assert read(config({"as": "a", "as-groups": ["b"]}, cluster)).proxy == "http://p:1"


FULL = config(
    {
        "token": SECRET,
        "tokenFile": "t",
        "as": "joe",
        "as-uid": "7",
        "as-groups": ["g"],
        "as-user-extra": {"k": [SECRET]},
        "client-certificate-data": PEM,
        "client-key-data": base64.b64encode(SECRET.encode()).decode(),
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "c",
            "env": [{"name": "A", "value": SECRET}],
        },
        "auth-provider": {"name": "oidc", "config": {"id-token": SECRET}},
        "username": "me",
        "password": SECRET,
    },
    {"proxy-url": f"http://me:{SECRET}@p", "tls-server-name": "n", "certificate-authority-data": PEM},
)
ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(
    [[], {}, [None], [{}], [5], {"a": None}, "\ud800", "\0", "a\nb", SECRET, 10**30, float("nan"), [[SECRET]]]
)  # fmt: skip


def places(value: object, at: tuple = ()) -> list[tuple]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in pairs for place in ((*at, key), *places(one, (*at, key)))]


@given(st.data())
def test_whatever_stands_wherever_it_is_read_or_refused_in_a_sentence_that_shows_no_secret(data):
    content = copy.deepcopy(FULL)
    for place in data.draw(st.lists(st.sampled_from(places(FULL)), min_size=1, max_size=8)):
        part, odd = content, data.draw(ODD)
        if place[-1] == "name" and odd == SECRET:
            continue  # what a context, a cluster or a user is called is no secret, and is told
        for key in place[:-1]:
            there = key in part if isinstance(part, dict) else isinstance(part, list) and key in range(len(part))
            part = part[key] if there else None
        if isinstance(part, dict) and odd is None and data.draw(st.booleans()):
            part.pop(place[-1], None)
        elif isinstance(part, dict):
            part[place[-1]] = odd
    try:
        found = repr(read(content))
    except ConfigError as error:
        found = str(error)
        assert found.isprintable()
        assert len(found) < 500
    assert SECRET not in found
    assert base64.b64encode(SECRET.encode()).decode() not in found


@given(st.text(max_size=20))
def test_what_is_taken_for_a_token_can_be_sent(text):
    try:
        found = bearer(text, "it")
    except ConfigError as error:
        assert text.strip() == "" or text.strip() not in str(error) or len(text) < 4
        return
    assert found == text.strip()
    assert found.isascii()
    assert found.isprintable()


def test_yaml_and_json_say_the_same():
    content = config({"token": "t", "as": "joe"})
    assert read(yaml.safe_load(json.dumps(content))) == read(yaml.safe_load(yaml.safe_dump(content)))


@pytest.mark.parametrize(
    ("environment", "server", "proxy"),
    [
        ({}, SERVER, ""),
        ({"HTTPS_PROXY": "http://p:3128"}, SERVER, "http://p:3128"),
        ({"https_proxy": "p:3128"}, SERVER, "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, SERVER, ""),
        ({"HTTP_PROXY": "http://p:3128"}, "http://a", "http://p:3128"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "10.0.0.0/8"}, SERVER, ""),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "10.1.0.0/16, 192.0.2.1"}, SERVER, "http://p"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "10.0.0.1"}, SERVER, ""),
        ({"HTTPS_PROXY": "p", "no_proxy": "*"}, SERVER, ""),
        ({"HTTPS_PROXY": "p", "NO_PROXY": ".lab"}, "https://api.lab", ""),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "lab:6443"}, "https://api.lab:6443", ""),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "lab:6443"}, "https://api.lab", "http://p"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "lab"}, "https://apilab", "http://p"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "fd00::/8"}, "https://[fd00::1]:6443", ""),
        ({"HTTPS_PROXY": "p"}, "https://127.0.0.1:6443", ""),
        ({"HTTPS_PROXY": "p"}, "https://localhost", ""),
    ],
)
def test_the_environment_s_proxy_is_taken_as_go_takes_it(environment, server, proxy):
    assert proxy_of(server, environment) == proxy


def test_a_proxy_of_the_environment_that_is_none_is_refused_without_its_password():
    with pytest.raises(ConfigError, match="HTTPS_PROXY of the environment is no URL of a proxy") as caught:
        proxy_of(SERVER, {"HTTPS_PROXY": f"ftp://me:{SECRET}@p"})
    assert SECRET not in str(caught.value)
