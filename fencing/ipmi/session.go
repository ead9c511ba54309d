package ipmi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/bougou/go-ipmi/pkg/command/app"
	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/protocol"
	"github.com/bougou/go-ipmi/pkg/rmcpplus"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/haven-ha/haven/fencing"
)

const (
	packetMax      = 1024
	rmcpHeader     = 4    // bytes before the session header
	sessionHeader  = 12   // bytes of the RMCP+ session header
	trailerNext    = 0x07 // "next header" of the session trailer
	remoteConsole  = 0x81 // our software id
	nameOnlyLookup = 0x10 // users are looked up by name alone
	// commandsMax bounds the commands of a session, so that no request
	// sequence number is used twice in it and no reply can be replayed.
	commandsMax = 60
)

// errSilent is returned when no acceptable answer came within the timeout of
// one packet. It may be cured by a fresh session.
var errSilent = fmt.Errorf("%w within the timeout", fencing.ErrUnreachable)

// errSuite is returned when the device does not speak a cipher suite.
var errSuite = fmt.Errorf("%w: cipher suite", fencing.ErrUnsupported)

// suite is one cipher suite of IPMI 2.0 in terms of its algorithms.
type suite struct {
	id    types.CipherSuiteID
	auth  types.AuthAlg
	integ types.IntegrityAlg
	crypt types.CryptAlg
}

// The suites that are spoken: SHA-256 first, SHA-1 for older boards. Both
// authenticate and encrypt. Suite 0, which does neither, cannot be expressed.
func knownSuite(id int) (suite, bool) {
	switch id {
	case 17:
		return suite{17, types.AuthAlg_HMAC_SHA256, types.IntegrityAlg_HMAC_SHA256_128, types.CryptAlg_AES_CBC_128}, true
	case 3:
		return suite{3, types.AuthAlg_HMAC_SHA1, types.IntegrityAlg_HMAC_SHA1_96, types.CryptAlg_AES_CBC_128}, true
	}
	return suite{}, false
}

// credentials are what a session is opened with. They live as long as it does.
type credentials struct {
	username string
	password string
	kg       []byte // BMC key for two-key logins, or nil
}

// session is one RMCP+ session over one socket of its own, used by one
// goroutine. It is built on go-ipmi's codecs and key derivation but not on its
// client: that one takes replies without checking that they are authentic,
// so that one forged datagram could say "off" for a host that lives, or panic
// the process from within a goroutine of the library. See TestForgedReplies.
type session struct {
	conn    net.Conn
	timeout time.Duration // of one exchange
	suite   suite

	consoleID, bmcID uint32
	guid             [16]byte // of the managed system, authenticated
	k1, k2           []byte
	sequence         uint32
	requests         uint8
	slowest          time.Duration // answer so far
	buf              [packetMax]byte
}

// open runs the RMCP+ handshake. None of its messages is sent twice: a second
// RAKP 1 would change the device's secrets under us and look like a wrong
// password. A lost packet costs a fresh session instead.
func open(ctx context.Context, conn net.Conn, s suite, cred credentials, timeout time.Duration) (*session, error) {
	ses := &session{conn: conn, timeout: timeout, suite: s}
	var random [20]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("draw session numbers: %w", err)
	}
	ses.consoleID = binary.LittleEndian.Uint32(random[:4]) | 1
	consoleRand := [16]byte(random[4:])
	if err := ses.openSession(ctx); err != nil {
		return nil, err
	}
	kuid := crypto.PadPassword20([]byte(cred.password))
	role := uint8(nameOnlyLookup) | uint8(types.PrivilegeLevelOperator)
	bmcRand, err := ses.rakp12(ctx, consoleRand, role, cred.username, kuid)
	if err != nil {
		return nil, err
	}
	sikKey := kuid
	if len(cred.kg) > 0 {
		sikKey = cred.kg
	}
	sik, k1, k2, err := crypto.DeriveSessionKeys(s.auth, consoleRand[:], bmcRand[:], role, cred.username, sikKey)
	if err != nil {
		return nil, fmt.Errorf("derive session keys: %w", err)
	}
	ses.k1, ses.k2 = k1, k2
	if err := ses.rakp34(ctx, consoleRand, bmcRand, role, cred.username, kuid, sik); err != nil {
		ses.farewell() // its answer may be lost and the session be open
		return nil, err
	}
	// A session may start as User; control needs Operator. Asking for it in each
	// session finds an account without the privilege before the outage.
	if err := ses.raisePrivilege(ctx); err != nil {
		ses.close(ctx)
		return nil, err
	}
	return ses, nil
}

func (s *session) raisePrivilege(ctx context.Context) error {
	data, err := s.command(ctx, &app.SetSessionPrivilegeLevelRequest{PrivilegeLevel: types.PrivilegeLevelOperator})
	switch {
	case err == nil && len(data) > 0 && data[0]&0x0f >= byte(types.PrivilegeLevelOperator):
		return nil
	case err == nil:
		return fmt.Errorf("set privilege operator: %w: a lower one was granted", fencing.ErrPrivilege)
	case errors.Is(err, fencing.ErrUnreachable), errors.Is(err, fencing.ErrBusy), ctx.Err() != nil:
		return err
	}
	if errors.Is(err, fencing.ErrPrivilege) {
		return fmt.Errorf("set privilege operator: %w", err)
	}
	return fmt.Errorf("set privilege operator: %w: %w", fencing.ErrPrivilege, err)
}

func (s *session) openSession(ctx context.Context) error {
	const tag = 1
	auth, integ, crypt := rmcpplus.NewAlgorithmPayloads(s.suite.auth, s.suite.integ, s.suite.crypt)
	req := rmcpplus.OpenSessionRequest{
		MessageTag:             tag,
		RemoteConsoleSessionID: s.consoleID,
		AuthenticationPayload:  auth,
		IntegrityPayload:       integ,
		ConfidentialityPayload: crypt,
	}
	var res rmcpplus.OpenSessionResponse
	if err := s.setup(ctx, types.PayloadTypeRmcpOpenSessionRequest, tag, req.Pack(), res.Unpack); err != nil {
		return fmt.Errorf("open session with suite %d: %w", s.suite.id, err)
	}
	// A device, or somebody in between, that answers with weaker algorithms
	// than were asked for would have us talk in the open.
	if types.AuthAlg(res.AuthAlg) != s.suite.auth || types.IntegrityAlg(res.IntegrityAlg) != s.suite.integ ||
		types.CryptAlg(res.CryptAlg) != s.suite.crypt || res.ManagedSystemSessionID == 0 {
		return fmt.Errorf("open session: %w %d was asked for, other algorithms were answered", errSuite, s.suite.id)
	}
	s.bmcID = res.ManagedSystemSessionID
	return nil
}

func (s *session) rakp12(ctx context.Context, consoleRand [16]byte, role uint8, username string, kuid []byte) ([16]byte, error) {
	const tag = 2
	req := rmcpplus.RAKPMessage1{
		MessageTag:                     tag,
		ManagedSystemSessionID:         s.bmcID,
		RemoteConsoleRandomNumber:      consoleRand,
		NameOnlyLookup:                 true,
		RequestedMaximumPrivilegeLevel: types.PrivilegeLevelOperator,
		UsernameLength:                 uint8(len(username)),
		Username:                       []byte(username),
	}
	res := rmcpplus.RAKPMessage2{AuthAlg: s.suite.auth}
	if err := s.setup(ctx, types.PayloadTypeRAKPMessage1, tag, req.Pack(), res.Unpack); err != nil {
		s.abort(types.RmcpStatusCodeInvalidSessionID)
		return [16]byte{}, fmt.Errorf("log in: %w", err)
	}
	want, err := crypto.RAKP2AuthCode(s.suite.auth, s.consoleID, s.bmcID, consoleRand[:],
		res.ManagedSystemRandomNumber[:], res.ManagedSystemGUID[:], role, username, kuid)
	if err != nil {
		return [16]byte{}, fmt.Errorf("log in: %w", err)
	}
	if len(want) == 0 || !crypto.Equal(want, res.KeyExchangeAuthenticationCode) {
		// The password is wrong. Saying so frees the device's session slot, and
		// no other suite is tried: that would be a second failed login.
		s.abort(types.RmcpStatusCodeInvalidIntegrityCheckValue)
		return [16]byte{}, fmt.Errorf("log in: %w: wrong user name or password", fencing.ErrAuth)
	}
	s.guid = res.ManagedSystemGUID
	return res.ManagedSystemRandomNumber, nil
}

func (s *session) rakp34(ctx context.Context, consoleRand, bmcRand [16]byte, role uint8, username string, kuid, sik []byte) error {
	const tag = 3
	code, err := crypto.RAKP3AuthCode(s.suite.auth, bmcRand[:], s.consoleID, role, username, kuid)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	req := rmcpplus.RAKPMessage3{MessageTag: tag, ManagedSystemSessionID: s.bmcID, KeyExchangeAuthenticationCode: code}
	res := rmcpplus.RAKPMessage4{AuthAlg: s.suite.auth}
	if err := s.setup(ctx, types.PayloadTypeRAKPMessage3, tag, req.Pack(), res.Unpack); err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	want, err := crypto.RAKP4ICV(s.suite.auth, consoleRand[:], s.bmcID, s.guid[:], sik)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	if len(want) == 0 || !crypto.Equal(want, res.IntegrityCheckValue) {
		return fmt.Errorf("log in: %w: device did not prove itself; is a BMC key (K_g) set?", fencing.ErrAuth)
	}
	return nil
}

// farewell sends the goodbye and does not wait for an answer.
func (s *session) farewell() {
	req := &app.CloseSessionRequest{SessionID: s.bmcID}
	if packet, err := s.next(req); err == nil {
		_, _ = s.conn.Write(packet)
	}
}

// abort ends a handshake in the way of the specification; nothing answers it
// that is worth waiting for.
func (s *session) abort(code types.RmcpStatusCode) {
	req := rmcpplus.RAKPMessage3{MessageTag: 3, RmcpStatusCode: code, ManagedSystemSessionID: s.bmcID}
	_, _ = s.conn.Write(protocol.BuildRMCPPlusPacket(uint8(types.PayloadTypeRAKPMessage3), 0, 0, 0, req.Pack()))
}

// setup sends one handshake message and waits for the answer of the matching
// type and tag that unpack takes, or for a refusal. Late answers to earlier
// messages are passed over. Some devices cut a refusal off after its status.
func (s *session) setup(ctx context.Context, t types.PayloadType, tag uint8, payload []byte, unpack func([]byte) error) error {
	packet := protocol.BuildRMCPPlusPacket(uint8(t), 0, 0, 0, payload)
	status := types.RmcpStatusCodeNoErrors
	err := s.exchange(ctx, packet, func(p []byte) bool {
		if !isRMCPPlus(p) {
			return false
		}
		id, _, kind, flags, body, ok := protocol.ParseRMCPPlusHeader(p)
		if !ok || id != 0 || flags&^0x3f != 0 || kind != uint8(t)+1 || len(body) < 2 || body[0] != tag {
			return false
		}
		status = types.RmcpStatusCode(body[1])
		if status != types.RmcpStatusCodeNoErrors {
			return len(body) < 8 || s.mine(body)
		}
		return len(body) >= 8 && s.mine(body) && unpack(body) == nil
	})
	if err == nil && status != types.RmcpStatusCodeNoErrors {
		return statusError(status)
	}
	return err
}

// mine says whether a handshake answer carries our session id; a refusal may
// leave it out.
func (s *session) mine(body []byte) bool {
	id := binary.LittleEndian.Uint32(body[4:8])
	return id == s.consoleID || (id == 0 && body[1] != 0)
}

// request is a command of go-ipmi's.
type request interface {
	Pack() []byte
	Command() types.Command
}

// command sends one command and returns the data of its answer. Only an answer
// that is encrypted, authentic, of this session and to this very request is
// taken; everything else is as if it had not come.
func (s *session) command(ctx context.Context, req request) ([]byte, error) {
	packet, err := s.next(req)
	if err != nil {
		return nil, err
	}
	var res types.IPMIResponse
	err = s.exchange(ctx, packet, func(p []byte) bool {
		plain, ok := s.unseal(p)
		if !ok {
			return false
		}
		res = types.IPMIResponse{}
		return res.Unpack(plain) == nil && res.RequesterSequence == s.requests &&
			res.Command == req.Command().ID && res.NetFn == req.Command().NetFn|1
	})
	if err != nil {
		return nil, err
	}
	if res.CompletionCode != uint8(types.CodeOK) {
		return nil, completionError(types.CompletionCode(res.CompletionCode))
	}
	return res.Data, nil
}

// next builds the packet of the session's next command.
func (s *session) next(req request) ([]byte, error) {
	if s.requests >= commandsMax {
		return nil, errors.New("session is used up")
	}
	s.requests++
	s.sequence++
	msg := types.IPMIRequest{
		ResponderAddr:     protocol.BMCAddr,
		NetFn:             req.Command().NetFn,
		RequesterAddr:     remoteConsole,
		RequesterSequence: s.requests,
		Command:           req.Command().ID,
		CommandData:       req.Pack(),
	}
	msg.ComputeChecksum()
	return s.seal(msg.Pack())
}

// seal encrypts a message and adds the session header and trailer.
func (s *session) seal(plain []byte) ([]byte, error) {
	iv := make([]byte, 16)
	if _, err := rand.Read(iv); err != nil {
		return nil, fmt.Errorf("draw initialization vector: %w", err)
	}
	body, err := crypto.EncryptAESPayload(plain, s.k2, iv)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	flags := types.PayloadFlagEncrypted | types.PayloadFlagAuthenticated
	p := protocol.BuildRMCPPlusPacket(uint8(types.PayloadTypeIPMI), flags, s.bmcID, s.sequence, body)
	pad := types.IntegrityPadLen(sessionHeader, len(body))
	for range pad {
		p = append(p, 0xff)
	}
	p = append(p, byte(pad), trailerNext)
	code, err := crypto.SessionIntegrityAuthCode(s.suite.integ, p[rmcpHeader:], s.k1, "")
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return append(p, code...), nil
}

// unseal returns the message in a packet if the packet is authentic. It checks
// before it decrypts, and never panics, whatever comes.
func (s *session) unseal(p []byte) ([]byte, bool) {
	if !isRMCPPlus(p) {
		return nil, false
	}
	id, _, kind, flags, body, ok := protocol.ParseRMCPPlusHeader(p)
	both := types.PayloadFlagEncrypted | types.PayloadFlagAuthenticated
	if !ok || id != s.consoleID || kind != uint8(types.PayloadTypeIPMI) || flags&both != both {
		return nil, false
	}
	n, _ := crypto.IntegrityAuthCodeLen(s.suite.integ)
	signed := len(p) - n
	if n == 0 || signed < rmcpHeader+sessionHeader+len(body)+2 {
		return nil, false
	}
	want, err := crypto.SessionIntegrityAuthCode(s.suite.integ, p[rmcpHeader:signed], s.k1, "")
	if err != nil || !crypto.Equal(want, p[signed:]) {
		return nil, false
	}
	if len(body) < 32 || len(body)%16 != 0 {
		return nil, false
	}
	plain, err := crypto.DecryptAESPayload(body, s.k2)
	return plain, err == nil
}

func isRMCPPlus(p []byte) bool {
	return len(p) >= rmcpHeader+sessionHeader && p[0] == types.RmcpVersion && p[3]&0x1f == 0x07 && p[4] == byte(types.AuthTypeRMCPPlus)
}

// exchange sends a packet once and reads until one is accepted, the timeout is
// over or the context ends. The reader's context must be bound to the socket
// by the caller, so that a cancelled one ends the read.
func (s *session) exchange(ctx context.Context, packet []byte, accept func([]byte) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(s.timeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err // it ended while the deadline was pushed out again
	}
	sent := time.Now()
	if _, err := s.conn.Write(packet); err != nil {
		return fmt.Errorf("send: %w: %w", fencing.ErrUnreachable, err)
	}
	for {
		n, err := s.conn.Read(s.buf[:])
		switch {
		case err == nil:
			if accept(s.buf[:n]) {
				s.slowest = max(s.slowest, time.Since(sent))
				return nil
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errSilent
		default:
			return fmt.Errorf("receive: %w: %w", fencing.ErrUnreachable, err)
		}
	}
}

// close ends the session at the device, so that its slot is free. It has a
// short time of its own: the session may end because the caller's is over.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	s.timeout = min(s.timeout, closeTimeout)
	_, _ = s.command(ctx, &app.CloseSessionRequest{SessionID: s.bmcID})
}

// statusError sorts the status codes of the handshake.
func statusError(c types.RmcpStatusCode) error {
	var kind error
	switch c {
	case types.RmcpStatusCodeNoErrors, types.RmcpStatusCodeInvalidPayloadType, types.RmcpStatusCodeIllegalParameter:
		kind = fencing.ErrUnsupported
	case types.RmcpStatusCodeNoResToCreateSess, types.RmcpStatusCodeNoResToCreateSessAtRole:
		kind = fencing.ErrBusy
	case types.RmcpStatusCodeInvalidSessionID, types.RmcpStatusCodeInactiveSessionID:
		kind = fencing.ErrBusy // it dropped the session half-way to make room
	case types.RmcpStatusCodeInvalidRole, types.RmcpStatusCodeUnauthorizedRoleOfPriLevel:
		kind = fencing.ErrPrivilege
	case types.RmcpStatusCodeInvalidNameLength, types.RmcpStatusCodeUnauthorizedName,
		types.RmcpStatusCodeUnauthorizedGUID, types.RmcpStatusCodeInvalidIntegrityCheckValue:
		kind = fencing.ErrAuth
	case types.RmcpStatusCodeInvalidAuthAlg, types.RmcpStatusCodeInvalidIntegrityAlg,
		types.RmcpStatusCodeNoMatchingAuthPayload, types.RmcpStatusCodeNoMatchingIntegrityPayload,
		types.RmcpStatusCodeInvalidConfidentAlg, types.RmcpStatusCodeNoCipherSuiteMatch:
		kind = errSuite
	default: // a code of the vendor's own
		kind = fencing.ErrUnsupported
	}
	return fmt.Errorf("%w: status %#02x, %s", kind, uint8(c), c)
}

// completionError sorts the completion codes of commands.
func completionError(c types.CompletionCode) error {
	// Most of the hundred codes belong to other commands.
	//exhaustive:ignore
	switch c {
	case types.CodeNodeBusy, types.CodeProcessTimeout, types.CodeOutOfSpace, types.CodeCannotProvideResponse,
		types.CodeCannotProvideResponseFirmwareUpdate, types.CodeCannotProvideResponseBMCInitialize,
		types.CodeUnspecifiedError:
		return fmt.Errorf("%w: %w", fencing.ErrBusy, c)
	case types.CodeInsufficientPrivilege:
		return fmt.Errorf("%w: %w", fencing.ErrPrivilege, c)
	case types.CodeNotSupported:
		return fmt.Errorf("%w: %w", fencing.ErrRejected, c)
	case types.CodeInvalidCommand, types.CodeInvalidCommandForLUN, types.CodeParameterOutOfRange,
		types.CodeRequestDataFieldInvalid, types.CodeIllegalCommand, types.CodeSubFnDisabled:
		return fmt.Errorf("%w: %w", fencing.ErrUnsupported, c)
	}
	return c
}
